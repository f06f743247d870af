"""The prompts' text and ids, and where the tokenizer is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from wpray.errors import BadInputError
from wpray.models.token_layout import BINS256, BINS300
from wpray.policies.waypoint_vla.prompt import (
    MAX_ACTION_PROMPT_TOKENS,
    PromptEncoder,
    PromptTooLongError,
    action_prompt,
    find_tokenizer,
    load_tokenizer,
    plan_prompt,
)

GOLDEN = Path(__file__).parent.parent / "data" / "golden_joint"
ROLLOUT = Path(__file__).parent.parent / "data" / "rollout"
TOKENIZER = ROLLOUT / "tokenizer.model"
SOUP = "pick up the alphabet soup and place it in the basket"


class Letters:
    """A tokenizer of one id a character; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, text: str) -> list[int]:
        self.calls += 1
        return [ord(letter) for letter in text]

    def vocab_size(self) -> int:
        return 128

    def bos_id(self) -> int:
        return 2


def test_prompts_are_written_as_training_wrote_them() -> None:
    state = np.array([-1, -0.9921875, 0, 0.0078125, 0.5, 1, 7, -7], np.float32)
    assert (
        plan_prompt(BINS256, "  Pick_up THE soup \n", state)
        == "Task: pick up the soup, State: 0 1 128 129 192 255 255 0;\n"
    )
    assert action_prompt("Open_it ") == "Task: open it, \n"


def test_the_recorded_plans_prompt_is_reproduced_id_by_id() -> None:
    with np.load(ROLLOUT / "rollout_task0_trial0.npz") as golden:
        expected, state = golden["prompt_0"].tolist(), golden["seg_start"][0, :8]
    encoder = PromptEncoder(load_tokenizer(TOKENIZER, small=True), BINS256, 256)
    assert list(encoder.plan(SOUP, state)) == expected
    assert encoder.act(SOUP)[0] == expected[0], "BOS first"


def test_prompts_of_the_newer_layout_are_the_recorded_ones() -> None:
    """Text and ids of both; the last expert prompt is longer than the expert reads."""
    encoder = PromptEncoder(load_tokenizer(TOKENIZER, small=True), BINS300, 1000)
    recorded = json.loads((GOLDEN / "prompts.json").read_text())
    assert recorded[-1]["expert_valid"] == MAX_ACTION_PROMPT_TOKENS
    for case in recorded:
        instruction, state = (
            case["instruction"],
            np.array([*case["state_normalized"], case["gripper_open"]], np.float32),
        )
        assert plan_prompt(BINS300, instruction, state) == case["planner_text"]
        assert list(encoder.plan(instruction, state)) == case["planner_ids"]
        assert action_prompt(instruction) == case["expert_text"]
        assert list(encoder.act(instruction)) == case["expert_ids"][: case["expert_valid"]]


def test_the_answers_header_is_encoded_on_its_own_and_a_tasks_prompt_once() -> None:
    letters = Letters()
    encoder = PromptEncoder(letters, BINS256, 256)
    assert bytes(encoder.header) == b"Action: "
    before = letters.calls
    for _ in range(3):
        assert encoder.act("Open_it") == (2, *b"Task: open it, \n")
    assert letters.calls == before + 1


def test_a_prompt_that_is_too_long_names_the_task_and_the_setting() -> None:
    encoder = PromptEncoder(Letters(), BINS256, 60)
    with pytest.raises(PromptTooLongError, match=r"'a+' has \d+ tokens; max_token_len allows 60"):
        encoder.plan("a" * 40, np.zeros(8, np.float32))
    assert len(encoder.act("a" * 54)) == 64
    with pytest.raises(PromptTooLongError, match="has 65 tokens; the action expert allows 64"):
        encoder.act("a" * 55)


def test_a_tokenizer_is_found_where_it_is_named_else_beside_a_checkpoint(tmp_path: Path) -> None:
    vlm, expert, elsewhere = tmp_path / "a" / "vlm" / "run" / "5000", tmp_path / "b" / "ae", tmp_path / "c"
    for folder in (vlm, expert, elsewhere):
        folder.mkdir(parents=True)
    with pytest.raises(BadInputError, match=rf"no tokenizer\.model beside {vlm} or {expert}; set tokenizer_path"):
        find_tokenizer(None, [vlm, expert])
    shutil.copy(TOKENIZER, elsewhere)
    assert find_tokenizer(elsewhere, [vlm]) == elsewhere / "tokenizer.model"
    assert find_tokenizer(elsewhere / "tokenizer.model", []) == elsewhere / "tokenizer.model"
    for folder in (expert, vlm.parent.parent, vlm):  # ever nearer to the first
        shutil.copy(TOKENIZER, folder)
        assert find_tokenizer(None, [vlm, expert]) == folder / "tokenizer.model"


def test_a_wrong_vocabulary_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(BadInputError, match=r"pieces, the checkpoint's vocabulary has 257152; set tokenizer_path"):
        load_tokenizer(TOKENIZER, small=False)
