"""Questions about code bases: parsers, builds, licences, secrets."""
