"""Prompts of the two models, and the sentencepiece tokenizer that encodes them (BOS first, no padding)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Protocol, cast

import sentencepiece

from wpray.errors import BadInputError, InvalidRequestError
from wpray.models.config import VOCABULARY
from wpray.models.token_layout import TOKEN_LAYOUTS, TokenLayout
from wpray.system.lfs import refuse_pointer
from wpray.types import Float32Array

ANSWER_HEADER = "Action: "  # start of the VLM's answer, encoded separately, without BOS
MAX_ACTION_PROMPT_TOKENS = 64
_TOKENIZER_NAME = "tokenizer.model"
_MAX_BYTES = 64_000_000
_CACHED_PROMPTS = 4096
_HALF_OPEN = 0.5  # threshold, because a gripper is 1.0 or 0.0
_REMEDY = "set tokenizer_path to PaliGemma's tokenizer.model"

TokenIds = tuple[int, ...]


class PromptTooLongError(InvalidRequestError):
    """Instruction with more tokens than the model supports."""


class _SentencePiece(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def vocab_size(self) -> int: ...
    def bos_id(self) -> int: ...


def clean(instruction: str) -> str:
    """Return the instruction in training's form: stripped, `_` as space, lower-case."""
    return instruction.strip().replace("_", " ").lower()


def plan_prompt(layout: TokenLayout, instruction: str, state: Float32Array) -> str:
    """Return the planner's prompt for an instruction and a state (`layout.state_dim`,).

    The state is the normalized proprio, followed by the gripper (1.0 open) if the layout has a token for it.
    """
    bins = " ".join(map(str, layout.to_bins(state[: layout.proprio_dim])))
    grippers = " ".join("open" if value > _HALF_OPEN else "closed" for value in state[layout.proprio_dim :])
    return f"Task: {clean(instruction)}, State: {bins}{f', Gripper: {grippers}' if grippers else ''};\n"


def action_prompt(instruction: str) -> str:
    """Return the action expert's prompt."""
    return f"Task: {clean(instruction)}, \n"


class PromptEncoder:
    """Encoder of prompts as token ids, which encodes a task's prompts once."""

    def __init__(self, tokenizer: _SentencePiece, layout: TokenLayout, max_plan_tokens: int) -> None:
        self._tokenizer, self._layout = tokenizer, layout
        self._max_plan_tokens = max_plan_tokens
        self.header: TokenIds = tuple(tokenizer.encode(ANSWER_HEADER))
        self._encode = lru_cache(maxsize=_CACHED_PROMPTS)(self._encode_uncached)

    def plan(self, instruction: str, state: Float32Array) -> TokenIds:
        """Return the ids of `plan_prompt`. Raise PromptTooLongError, which names the task."""
        return self._bounded(
            plan_prompt(self._layout, instruction, state), self._max_plan_tokens, "max_token_len", instruction
        )

    def act(self, instruction: str) -> TokenIds:
        """Return the ids of the action expert's prompt.

        With the newer tokens, one that is too long is cut as in training; with the older ones, raise
        PromptTooLongError, which names the task.
        """
        prompt = action_prompt(instruction)
        if self._layout.gripper is not None:
            return self._encode(prompt)[:MAX_ACTION_PROMPT_TOKENS]
        return self._bounded(prompt, MAX_ACTION_PROMPT_TOKENS, "the action expert", instruction)

    def _bounded(self, prompt: str, limit: int, what: str, instruction: str) -> TokenIds:
        ids = self._encode(prompt)
        if len(ids) > limit:
            raise PromptTooLongError(f"the prompt of task {instruction!r} has {len(ids)} tokens; {what} allows {limit}")
        return ids

    def _encode_uncached(self, prompt: str) -> TokenIds:
        return (self._tokenizer.bos_id(), *self._tokenizer.encode(prompt))


def find_tokenizer(path: Path | None, beside: Iterable[Path]) -> Path:
    """Return the tokenizer file: `path` (a file, or its folder), else the first one near `beside`.

    Near a checkpoint means in its folder or in one of the two above it. Raise BadInputError if there is none.
    """
    if path is not None:
        file = path / _TOKENIZER_NAME if path.is_dir() else path
        if file.is_file():
            return file
        raise BadInputError(f"tokenizer_path: {file} is not a file; {_REMEDY}")
    checkpoints = list(beside)
    for checkpoint in checkpoints:
        absolute = checkpoint.absolute()
        for folder in (absolute, *absolute.parents[:2]):
            if (folder / _TOKENIZER_NAME).is_file():
                return folder / _TOKENIZER_NAME
    names = " or ".join(map(str, checkpoints))
    raise BadInputError(f"no {_TOKENIZER_NAME} beside {names}; {_REMEDY}")


def load_tokenizer(path: Path, *, small: bool) -> _SentencePiece:
    """Return the sentencepiece tokenizer in `path`.

    It must have PaliGemma's vocabulary, because the embedding table does. A `small` one, of synthetic test checkpoints,
    may have any number of pieces below the waypoint tokens. Raise BadInputError for any other.
    """
    refuse_pointer(path, "tokenizer_path")
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if not 0 < len(raw) <= _MAX_BYTES:
            raise RuntimeError("empty, or larger than 64 MB")
        tokenizer = cast(_SentencePiece, sentencepiece.SentencePieceProcessor(model_proto=raw))
        pieces = tokenizer.vocab_size()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"tokenizer_path: {path}: not a sentencepiece model ({reason}); {_REMEDY}") from error
    if tokenizer.bos_id() < 0:
        raise BadInputError(f"tokenizer_path: {path}: has no token that begins a sequence; {_REMEDY}")
    lowest_waypoint_id = min(layout.lowest_id for layout in TOKEN_LAYOUTS.values())
    if pieces != VOCABULARY and not (small and pieces <= lowest_waypoint_id):
        raise BadInputError(
            f"tokenizer_path: {path}: has {pieces} pieces, the checkpoint's vocabulary has {VOCABULARY}; {_REMEDY}"
        )
    return tokenizer
