"""The portal's pages and the JSON API under them: one area is one file."""
