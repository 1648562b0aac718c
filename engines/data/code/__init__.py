"""Questions about a code base: definitions by parsers, facts about its build, and what must not be learned."""
