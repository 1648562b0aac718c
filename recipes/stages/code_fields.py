"""The fields of questions about a code base: languages, kinds of questions, what is left out, repetition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from recipes.setting import setting
from recipes.stages.fields import StageFields

Language: TypeAlias = Literal["python", "c", "cpp", "javascript", "typescript", "go", "rust", "java"]
Question: TypeAlias = Literal[
    "docstring", "signature", "bases", "methods", "location", "overview", "build", "stack"
]  # fmt: skip
LANGUAGES: tuple[Language, ...] = get_args(Language)
QUESTIONS: tuple[Question, ...] = get_args(Question)
TITLES: Mapping[str, str] = {
    "python": "Python",
    "c": "C",
    "cpp": "C++",
    "javascript": "JavaScript",
    "typescript": "TypeScript",
    "go": "Go",
    "rust": "Rust",
    "java": "Java",
}
"""The name of each language in answers."""
SUFFIXES: Mapping[str, Language] = {
    ".py": "python", ".pyi": "python",
    ".c": "c", ".h": "c",
    ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp", ".c++": "cpp", ".hh": "cpp", ".hpp": "cpp", ".hxx": "cpp",
    ".ipp": "cpp", ".inl": "cpp", ".cu": "cpp", ".cuh": "cpp",
    ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".mts": "typescript", ".cts": "typescript", ".tsx": "typescript",
    ".go": "go", ".rs": "rust", ".java": "java",
}  # fmt: skip
"""The language of a source file by its suffix in lower case. A `.h` file may be C++ too: its text decides."""


class CodeFields(StageFields):
    """Questions about a code base, answered only from its sources."""

    questions: list[Question] = setting(
        default_factory=lambda: list(QUESTIONS),
        section="Questions",
        min_length=1,
        help="Kinds of questions to generate: purpose, signature, base types, methods, place and overview of a"
        " definition; build and technology stack of the project.",
    )
    max_examples: int | None = setting(
        None,
        section="Questions",
        gt=0,
        help="Maximum number of examples, distributed over the splits, without those of build and stack.",
    )
    max_answer_chars: int = setting(
        400,
        section="Questions",
        gt=0,
        unit="characters",
        help="Maximum length of an answer about a definition; examples with a longer one are skipped and counted.",
    )
    keywords: list[str] = setting(
        default_factory=list,
        section="Questions",
        help="Ask for the text of the files whose path contains one of these words, in any case.",
    )
    max_file_chars: int = setting(
        2000,
        section="Questions",
        gt=0,
        unit="characters",
        help="Maximum length of an answer with the text of a file, or about the build and the stack.",
    )
    repeat_build: int = setting(
        1, section="Questions", ge=1, le=1000, help="How often the train split repeats each question about the build."
    )
    repeat_stack: int = setting(
        1, section="Questions", ge=1, le=1000, help="How often the train split repeats each question about the stack."
    )
    probe_rows: int | None = setting(
        None,
        section="Questions",
        ge=1,
        le=100_000,
        help="Rows of the fact probe: questions with four choices about definitions of the test split that no training"
        " row names, written as probe.jsonl; an evaluate stage asks them. By default, none.",
    )
    languages: list[Language] = setting(
        default_factory=lambda: list(LANGUAGES),
        section="Code base",
        min_length=1,
        help="Languages to read; all except Python need the extra `code`.",
    )
    exclude_sources: list[str] = setting(
        default_factory=list, section="Code base", help="Files to skip: patterns of paths inside the code base."
    )
    max_source_bytes: int = setting(
        1_048_576,
        section="Code base",
        gt=0,
        unit="bytes",
        help="Maximum size of a file; larger files are skipped and counted.",
    )
    vendored: Literal["drop", "keep"] = setting(
        "drop", section="Code base", help="Whether to skip folders of third-party code, such as vendor/."
    )
    generated: Literal["drop", "keep"] = setting(
        "drop", section="Code base", help="Whether to skip files that a program generated or minified."
    )
    licenses: list[str] = setting(
        default_factory=list,
        section="Code base",
        help="SPDX names of the licences to read, such as MIT; files under another one are skipped. Empty: all.",
    )
    unknown_license: Literal["keep", "drop"] = setting(
        "keep", section="Code base", help="What to do with a file whose licence is not known, if licenses is not empty."
    )
