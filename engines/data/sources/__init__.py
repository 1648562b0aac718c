"""Documents from files of text: which text a file contains, where a long one is divided, and what is left out."""
