"""Fine-tuning: the loss against one written token by token, and what must not change it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.data.batches import chat, packing
from lmjax.data.chat_tokens import ChatTokens
from lmjax.objectives import assistant, sft
from lmjax.objectives.chat_samples import ChatSamples
from lmjax.objectives.sft import FineTuning
from lmjax.run import build, feed
from tests import small

RECORDS = [3, 5, 8]


def fine_tuning(corpus: Path, name: str = "chat", *changes: str) -> tuple[build.Run, FineTuning, Any]:
    run = small.build(name, corpus, "model.dropout=0.0", *changes)
    assert isinstance(run.objective, FineTuning)
    return run, run.objective, small.rough(run.objective)


def token_by_token(objective: FineTuning, params: Any, record: int) -> tuple[float, int]:
    """The sum of -log p of the targets of a conversation, read alone and without padding, and their number."""
    store = objective.samples.store
    tokens, mask = store.streams["train-0"], store.streams["train-mask"]
    part = slice(tokens.starts[record], tokens.starts[record + 1])
    ids, targets = np.asarray(tokens.ids[part], np.int32), np.asarray(mask.ids[part])
    logits_TV = np.asarray(jax.jit(objective.model.apply)({"params": params}, ids[None])[0], np.float64)
    log_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    places = [place for place in range(1, len(ids)) if targets[place]]
    return -sum(log_TV[place - 1, ids[place]] for place in places), len(places)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), ("model.positions=rotary", "objective.chunk=32")])
def test_neither_padding_nor_packing_changes_the_loss(corpus: Path, changes: tuple[str, ...]) -> None:
    """float32 with sums in another order: 1e-5 of the loss."""
    run, objective, params = fine_tuning(corpus, "packed chat", "model.context=128", *changes)
    store = run.store
    expected = [token_by_token(objective, params, record) for record in RECORDS]
    loss, weight = (sum(column) for column in zip(*expected, strict=True))
    alone = packing.single(np.asarray(RECORDS))
    lengths = np.asarray([len(objective.samples.conversation("train", record)) - 1 for record in RECORDS])
    joined = packing.pack(lengths, 128)
    joined = packing.Rows(np.asarray(RECORDS)[joined.sequences], joined.first)
    batches = {
        "narrow": chat.arrays(store, "train", alone, width=int(lengths.max()), packed=False),
        "wide": chat.arrays(store, "train", alone, width=128, packed=False),
        "packed": chat.arrays(store, "train", joined, width=128, packed=True),
    }
    assert len(batches["packed"]["inputs_BT"]) < len(RECORDS)
    measure = jax.jit(lambda params, rows: (objective.loss(params, rows, train=True), objective.by_row(params, rows)))
    for name, batch in batches.items():
        sums, (by_row, _) = measure(params, batch)
        assert float(sums.weight) == weight
        np.testing.assert_allclose(float(sums.loss), loss, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(float(by_row.sum()), loss, rtol=1e-5, err_msg=name)
        if name != "packed":
            np.testing.assert_allclose(by_row, [value for value, _ in expected], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_conversation_sees_nothing_of_its_neighbours(corpus: Path) -> None:
    run, objective, params = fine_tuning(corpus, "packed chat", "data.targets=all")
    joined = packing.Rows(np.asarray([3, 5]), np.asarray([0, 2]))
    batch = chat.arrays(run.store, "train", joined, width=128, packed=True)
    second = batch["segments_BT"] == 2
    other = batch | {"inputs_BT": np.where(second, 7, batch["inputs_BT"])}
    first = {"weights_BT": batch["weights_BT"] * (batch["segments_BT"] == 1)}
    loss = jax.jit(lambda rows: objective.loss(params, rows, train=False).loss)
    losses = [float(loss(rows | first)) for rows in (batch, other)]
    assert losses[0] == losses[1] > 0
    rest = {"weights_BT": batch["weights_BT"] * second}
    losses = [float(loss(rows | rest)) for rows in (batch, other)]
    assert losses[0] != losses[1]  # the change matters where it was made


@pytest.mark.slow
def test_the_division_into_microbatches_changes_no_update(corpus: Path) -> None:
    """Four microbatches with long and short answers: loss and gradient of the update are those of the complete batch.

    float32 with sums in another order: 1e-4 of the norm.
    """
    run, objective, params = fine_tuning(corpus, "chat", "optimizer.clip=0", "batch.microbatch=2")
    rows: Any = next(feed.host_batches(run, 0, 0))[2]
    counts = rows["weights_BT"].reshape(4, -1).sum(1)
    assert len(set(counts.tolist())) > 2  # a mean of means would differ

    def loss(params: Any) -> Any:
        sums = objective.loss(params, rows, train=True)
        return sums.loss / sums.weight

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    state: Any = build.init(run)
    batch = next(feed.device_batches(run, 0, 0)).batch
    _, metrics = build.update_function(run)(state.replace(params=jax.device_put(params)), batch)
    norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(float(metrics["loss"]), float(value), rtol=1e-5)
    np.testing.assert_allclose(float(metrics["grad_norm"]), norm, rtol=1e-4)


@pytest.mark.slow
def test_answers_do_not_depend_on_the_other_prompts(corpus: Path) -> None:
    """Prompts are padded on the left to one length: greedy answers of a batch are those of each prompt alone."""
    _, objective, params = fine_tuning(corpus, "chat", "model.positions=rotary")
    prompts = [prompt for prompt, _ in objective.samples.questions()][:4]
    assert len({len(prompt) for prompt in prompts}) > 1
    prompts.append((prompts[0] * 128)[: objective.config.model.context - 2])  # leaves space for three tokens only
    together = objective._answers(params, prompts)
    assert together == [answer for prompt in prompts for answer in objective._answers(params, [prompt])]
    assert max(len(answer) for answer, _ in together[:-1]) > 3 >= len(together[-1][0])


# ---- Without a program to compile ------------------------------------------------------------------------------------


def written(monkeypatch: pytest.MonkeyPatch, objective: FineTuning, answers: dict[str, str]) -> None:
    """Let the model write these answers, by the prompts."""
    store = objective.samples.store

    def continue_ids(model: Any, params: Any, prompts: Any, *, sampling: Any, ends: Any) -> Any:
        assert ChatTokens(store.tokenizer).end in ends
        assert sampling.temperature == 0
        yield [
            store.tokenizer.encode(answers[store.tokenizer.decode(prompt)])[: sampling.max_tokens] for prompt in prompts
        ]

    monkeypatch.setattr(assistant, "continue_ids", continue_ids)


def test_exact_answers_are_those_that_end_with_the_reference(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small.build("chat", corpus, "objective.scored=0", "objective.answer_tokens=64", "model.context=128")
    objective = run.objective
    assert isinstance(objective, FineTuning)
    decode = run.store.tokenizer.decode
    pairs = [(decode(prompt), decode(answer)) for prompt, answer in objective.samples.questions()]
    kinds = [(answer, f" {answer}\n", f"{answer}s", "x" * 80)[i % 4] for i, (_, answer) in enumerate(pairs)]
    written(monkeypatch, objective, {prompt: kind for (prompt, _), kind in zip(pairs, kinds, strict=True)})
    count = len(pairs)
    expected = {"val_exact": sum(i % 4 < 2 for i in range(count)) / count}
    expected["val_ended"] = sum(i % 4 < 3 for i in range(count)) / count
    assert objective.finish(None) == pytest.approx(expected)
    sample = objective.sample(None)
    assert sample.count("  -> ") == sft.SHOWN
    assert f"{pairs[0][0]}\n  -> {kinds[0]}\n  ({pairs[0][1]})" in sample


def test_scores_are_per_target() -> None:
    objective = FineTuning.__new__(FineTuning)
    scores = objective.scores({"loss": 6.0, "weight": 4.0, "accuracy": 3.0, "cross_entropy": 6.0})
    assert scores == {"val_loss": 1.5, "val_accuracy": 0.75}


def test_a_prompt_is_a_turn_of_the_user(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small.build("chat", corpus)
    objective, tokenizer = run.objective, run.store.tokenizer
    assert isinstance(objective, FineTuning)
    seen: list[Any] = []

    def generate(lm: Any, prompts: Any, *, sampling: Any, alone: bool) -> list[str]:
        seen.extend((lm, prompts, sampling, alone))
        return ["four"]

    monkeypatch.setattr(assistant, "generate", generate)
    assert objective.answer(None, "<|end|>4?", tokenizer=tokenizer, temperature=0, seed=3) == "four"
    lm, [ids], sampling, alone = seen
    assert tokenizer.decode(ids) == "<|user|><|end|>4?<|assistant|>"
    assert ids.count(ChatTokens(tokenizer).end) == 0
    assert set(lm.ends) == {ChatTokens(tokenizer).end, tokenizer.end_of_text}
    assert (sampling.seed, alone) == (3, True)
    for prompt, message in ((" ", "prompt is empty"), ("a" * 99, r"model.context is 64; shorten it")):
        with pytest.raises(UserError, match=message):
            objective.answer(None, prompt, tokenizer=tokenizer)
    assert isinstance(objective.samples, ChatSamples)
