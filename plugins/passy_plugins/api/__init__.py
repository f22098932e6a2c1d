"""The keys API and the admin API: two applications over one database.

What is imported to learn of them (``keys``, ``admin``) imports no FastAPI; what they are made of
when they are started does.
"""
