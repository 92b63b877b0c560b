"""Keep state in five shapes: tables, blobs, keyvalue, ledger and streams; each is a protocol with interchangeable backends."""
