"""What the tests of promises are made with: the gateway as a process, a raw upstream with a ledger
of hits, a raw client, catalogues of cases as data, and a search for secrets."""
