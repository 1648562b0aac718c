"""Configurations of other training programs (LLaMA-Factory, Axolotl, TRL, Unsloth) as recipes.

A configuration becomes entries (`config`), a program's table says what each key means here (`llama_factory`, `axolotl`,
`arguments`), and every key ends as one `Outcome`: none is dropped. Nothing of a configuration is executed.
"""
