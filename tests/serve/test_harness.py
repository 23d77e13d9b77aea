"""lm-evaluation-harness: our model in it answers as its own HFLM does, and our evaluator measures what it measures.

Tolerance 1e-4, relative, of sums of some hundred log-probabilities: float32 on both sides, other orders of summing.
"""

import itertools
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.evaluation import evaluator
from lmjax.evaluation.evaluator import Settings
from lmjax.tasks import render, shots
from lmjax.tasks.spec import Task, TaskConfig

for package in ("torch", "transformers", "lm_eval", "accelerate"):
    pytest.importorskip(package)
pytestmark = pytest.mark.filterwarnings("ignore")  # of theirs

close = partial(np.testing.assert_allclose, rtol=1e-4)

CONTEXT = 48
TEXT = "The wren sang; the übrige  herd slept.\nA wren is a bird, a herd is many. Which? Two blanks, no end: one, two. "
WORDS = tokenizer.build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), lambda: iter([TEXT]))
SIZES = {
    "vocab_size": WORDS.vocab_size,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": WORDS.end_of_text,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model as transformers writes it."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(folder)
    end = WORDS.token_text(WORDS.end_of_text)
    spoken = transformers.PreTrainedTokenizerFast(tokenizer_object=WORDS.backend, eos_token=end, pad_token=end)
    spoken.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    from lmjax.serve.harness import Harness

    return Harness.create_from_arg_string(f"path={folder}", {"batch_size": 1, "device": None})


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)


def instances(kind: str, asked: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, arguments, 0) for arguments in asked]


# ---- The model in the harness -----------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_the_harness(ours: Any, theirs: Any) -> None:
    """Empty and too long contexts, blanks at the seam, one token and several, shared beginnings, greedy or not."""
    contexts = ["", "The wren", "The wren is a ", "A herd is\n\n", TEXT, TEXT * 2]
    asked = list(itertools.product(contexts, (" bird", "s", " a bird, a herd", "übrige", "\n")))
    greedy = theirs.generate_until(instances("generate_until", [(c, {"max_gen_toks": 1}) for c in contexts[1:]]))
    asked += [(c, text) for c, text in zip(contexts[1:], greedy, strict=True) if text and "\ufffd" not in text]
    requests = instances("loglikelihood", asked)
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    close([logprob for logprob, _ in found], [logprob for logprob, _ in expected])
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert 0 < sum(is_greedy for _, is_greedy in found) < len(found)


def test_texts_longer_than_the_context_are_read_in_the_same_windows(ours: Any, theirs: Any) -> None:
    ids = len(WORDS.encode(TEXT))
    assert ids % CONTEXT
    requests = instances("loglikelihood_rolling", [(TEXT * 2,), (TEXT * 3,), ("The wren",), ("T",)])
    close(ours.loglikelihood_rolling(requests), theirs.loglikelihood_rolling(requests))


@pytest.mark.slow
def test_greedy_continuations_are_those_of_the_harness(ours: Any, theirs: Any) -> None:
    """With stops and without, from contexts that are too long."""
    contexts = ["The wren", "A", "Which? Two", TEXT, TEXT * 2]
    kinds = ({"until": []}, {"until": ["e", "\n\n"]}, {"until": "a", "do_sample": False, "temperature": 0.7})
    asked = [(c, kind | {"max_gen_toks": 20}) for c, kind in itertools.product(contexts, kinds)]
    requests = instances("generate_until", asked)
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests)
    assert len({len(text) for text in found}) > 5


@pytest.mark.slow
def test_drawn_continuations_differ_and_unknown_settings_are_refused(ours: Any) -> None:
    drawn = {"do_sample": True, "temperature": 0.9, "max_gen_toks": 20}
    requests = instances("generate_until", [("The wren", drawn)] * 3)
    texts = ours.generate_until(requests)
    assert len(set(texts)) > 1
    assert texts == ours.generate_until(requests)
    with pytest.raises(UserError, match="lmjax has no num_beams=4, only 1; it has do_sample, "):
        ours.generate_until(instances("generate_until", [("The wren", {"num_beams": 4})]))


def test_a_continuation_as_long_as_the_context_is_refused(ours: Any) -> None:
    for settings in ({"max_gen_toks": CONTEXT}, {}):  # the default of the harness is 256
        with pytest.raises(UserError, match=f"must be less than the context of the model, {CONTEXT}; set it"):
            ours.generate_until(instances("generate_until", [("The wren", settings)]))


def test_what_the_model_is_told_is_known_and_its_answers_are_in_the_results(folder: Path, ours: Any) -> None:
    from lmjax.serve.harness import Harness

    with pytest.raises(UserError, match=r"model_args: lmjax has no 'first_tokn'; did you mean 'first_token'\?"):
        Harness.create_from_arg_string(f"path={folder},first_tokn=bos")
    for wrong in ("x", 1.5, True, -1, "9" * 5000):
        with pytest.raises(UserError, match=r"prefix_token_id=.* is not the id of a token"):
            Harness(ours.lm, prefix_token_id=wrong)
    assert ours.prefix_token_id == ours.eot_token_id == WORDS.end_of_text
    assert Harness(ours.lm, prefix_token_id="3").prefix_token_id == 3
    assert Harness(ours.lm, first_token="none").prefix_token_id is None
    assert (ours.max_length, ours.max_gen_toks) == (CONTEXT, 256)
    assert ours.get_model_info()["first_token"] == WORDS.token_text(WORDS.end_of_text)
    for option in (True, "rag"):
        with pytest.raises(UserError, match="the model has no chat template"):
            ours.chat_template(option)


def test_a_chat_has_the_special_tokens_that_any_file_names(folder: Path, ours: Any, tmp_path: Path) -> None:
    """Also those of special_tokens_map.json, and those of a model that is loaded already."""
    import transformers

    from lmjax.serve.harness import Harness

    shutil.copytree(folder, tmp_path / "in")
    end = WORDS.token_text(WORDS.end_of_text)
    source = "{{ bos_token }}|{{ eos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, "eos_token": end}))
    (tmp_path / "in" / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": end}}))
    chat = [{"role": "user", "content": "The wren"}]
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path / "in").apply_chat_template(chat, tokenize=False)
    assert expected.startswith(end)
    opened = Harness(tmp_path / "in")
    for model in (opened, Harness(opened.lm)):
        model.chat_template(True)
        assert model.apply_chat_template(chat) == expected


def test_special_tokens_in_a_text_are_read_as_in_the_harness(ours: Any, theirs: Any) -> None:
    text = f"The wren{WORDS.token_text(WORDS.end_of_text)}A herd"
    assert ours.lm.ids(text) == theirs.tok_encode(text)
    assert WORDS.end_of_text in ours.lm.ids(text)


# ---- Our measures and the harness's -----------------------------------------------------------------------------

NAMES = ["wren", "herd", "end", "blank", "two", "is", "one bird", "The", "sang", "many"]
KINDS: dict[str, dict[str, Any]] = {  # ours, and the same in the harness's words
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metrics": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score"),
    },
    "match": {"output_type": "loglikelihood", "target_delimiter": "", "metrics": ("acc",)},
    "generate": {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metrics": ("exact_match",),
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metrics": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    },
}
OURS = {
    "choose": TaskConfig(kind="choose"),
    "match": TaskConfig(kind="match", answer="{next}", separator=""),
    "generate": TaskConfig(kind="generate", answer="{target}", max_tokens=6, ignore_case=False),
    "perplexity": TaskConfig(kind="perplexity", prompt="{text}"),
}
SAME = {("match", "exact_match"): "acc", ("choose", "brier"): "brier_score"}  # our names, and theirs


def rows(theirs: Any) -> list[dict[str, Any]]:
    """Questions, half of them with answers that the model gives."""
    pairs = zip(NAMES, NAMES[3:] + NAMES[:3], strict=True)
    found: list[dict[str, Any]] = [
        {"input": f"Which {a}?", "choices": [a, b, f"{b} {a}s", "ü" + a], "answer": i % 4, "text": f"{TEXT}{a}\n" * 2}
        for i, (a, b) in enumerate(pairs)
    ]
    for name, length in (("target", 6), ("next", 1)):
        asked = [(row["input"], {"until": ["\n"], "max_gen_toks": length}) for row in found]
        texts = theirs.generate_until(instances("generate_until", asked))
        for i, (row, text) in enumerate(zip(found, texts, strict=True)):
            row[name] = text.strip() if text.strip() and i % 2 else NAMES[i]
    return found


def in_the_harness(task: Task, given: list[dict[str, Any]], count: int) -> Any:
    """The harness's task of the same rows behind the same examples."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    kind = task.config.kind
    prompts = [shots.render_prompt(task, document, count, described=False) for document in task.documents]
    content = [{**row, "prompt": prompt} for row, prompt in zip(given, prompts, strict=True)]
    settings = {
        "task": f"{kind}_{count}",
        "test_split": "test",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(content)},
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{next}}" if kind == "match" else "{{target}}",
        **{name: value for name, value in KINDS[kind].items() if name != "metrics"},
        "metric_list": [{"metric": metric} for metric in KINDS[kind]["metrics"]],
    }
    return ConfigurableTask(config=settings)


@pytest.mark.slow
def test_our_evaluator_measures_what_the_harness_measures(ours: Any, theirs: Any, folder: Path) -> None:
    """Their model in their harness, our model in theirs, and our own evaluator: without examples and with two."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    given = rows(theirs)
    built = [render.build_task(replace(c, name=kind), [("", row) for row in given]) for kind, c in OURS.items()]
    measured = evaluator.evaluate(ours.lm, built[:3], Settings(shots=(0, 2), mutual_info=True)).scores()
    measured |= evaluator.evaluate(ours.lm, built[3:]).scores()
    same = [in_the_harness(task, given, count) for task in built[:3] for count in (0, 2)]
    same.append(in_the_harness(built[3], given, 0))
    named: dict[str, Any] = {"tasks": same, "bootstrap_iters": 0, "log_samples": False}
    named["task_manager"] = TaskManager(include_defaults=False)  # reading its 13,000 tasks takes half a minute
    expected = lm_eval.simple_evaluate(model=theirs, **named)["results"]
    adapted = lm_eval.simple_evaluate(model="lmjax", model_args=f"path={folder}", **named)["results"]
    compared = set()
    for (kind, count), scores in measured.items():
        for metric, score in scores.items():
            name = f"{SAME.get((kind, metric), metric)},none"
            if name in expected[f"{kind}_{count}"]:
                close(score.value, expected[f"{kind}_{count}"][name], err_msg=f"{kind} {metric}")
                close(adapted[f"{kind}_{count}"][name], expected[f"{kind}_{count}"][name])
                compared.add((kind, SAME.get((kind, metric), metric)))
    assert compared == {(kind, metric) for kind in KINDS for metric in KINDS[kind]["metrics"]}
    assert all(0 < measured[kind, 0]["exact_match"].value < 1 for kind in ("match", "generate"))
