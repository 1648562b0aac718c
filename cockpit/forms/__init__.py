"""A recipe as rows that can be edited: values, problems, saving."""
