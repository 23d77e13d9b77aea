"""Scores of many requests at once against one forward pass for each, and requests against lm-evaluation-harness's."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lmjax.config import ModelConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.evaluation import scoring
from lmjax.evaluation.scoring import Found, Request
from tests import ROOT, all_slow_but
from tests.evaluation import plain

BPE = tokenizer.build_tokenizer(
    TokenizerConfig(kind="bpe", vocab_size=300),
    lambda: iter(["the cat sat on the mat and the dog ran to the cat. "] * 9),
)


def alike(found: list[Found], expected: list[Found]) -> None:
    """Sums of at most a hundred float32 terms, in another order and in padded arrays."""
    np.testing.assert_allclose([f.logprob for f in found], [e.logprob for e in expected], rtol=1e-5, atol=1e-5)
    assert [f.greedy for f in found] == [e.greedy for e in expected]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of few places, so that there are several, and batches too."""
    monkeypatch.setattr(scoring, "SHORTEST", 64)
    monkeypatch.setattr(scoring, "PLACES", 192)


@pytest.mark.parametrize("config", all_slow_but({0}, plain.FAMILIES.values()), ids=plain.FAMILIES)
def test_scores_are_those_of_a_pass_for_each_request(config: ModelConfig, short: None) -> None:
    lm = plain.language_model(config)
    asked = plain.requests(lm)
    expected = [plain.say(lm, *request) for request in asked]
    assert 4 <= sum(found.greedy for found in expected) < 9
    alike(scoring.score(lm, asked), expected)


@pytest.mark.slow
def test_neither_order_nor_size_nor_sharing_nor_company_changes_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = plain.language_model(plain.GPT)
    asked = plain.requests(lm, seed=1)
    whole = scoring.score(lm, asked)  # rows of full size
    taken: dict[int, Found] = {}
    monkeypatch.setattr(scoring, "SHORTEST", 64)
    alike(scoring.score(lm, asked, share=False, take=taken.update), whole)
    alike([taken[i] for i in range(len(asked))], whole)
    order = np.random.default_rng(0).permutation(len(asked)).tolist()
    for places in (1, 200):
        monkeypatch.setattr(scoring, "PLACES", places)
        alike(scoring.score(lm, [asked[i] for i in order]), [whole[i] for i in order])
    monkeypatch.setattr(scoring, "LOGITS", 1)
    alike(scoring.score(lm, asked[3:5] * 3), whole[3:5] * 3)
    assert scoring.score(lm, []) == []


@pytest.mark.slow
def test_a_score_that_is_not_a_number_is_none_and_probability_0_is_one() -> None:
    """NaN and an infinite logit have no rank; a logit of minus infinity is probability 0."""
    lm = plain.trigrams(np.zeros((plain.V, plain.V)), np.zeros((plain.V, plain.V)))
    asked = [scoring.encode(lm, "a", text) for text in ("b", "c")]
    token = asked[1].continuation[0]
    for value in (np.nan, np.inf, -np.inf):
        lm.params["direct"]["bias"] = np.zeros(plain.V, np.float32)
        lm.params["direct"]["bias"][token] = value
        if value == -np.inf:
            others, impossible = scoring.score(lm, asked)
            assert (impossible.logprob, impossible.greedy) == (-np.inf, False)
            assert others.logprob == pytest.approx(-np.log(plain.V - 1), rel=1e-5)  # float32
        else:
            for request in asked:  # also of a finite logit next to an infinite one
                with pytest.raises(scoring.NoScore, match="a log-probability that is not a number, which has no rank"):
                    scoring.score(lm, [request])


def test_what_is_shared_is_computed_once() -> None:
    """Each place of a row is another beginning of the texts that are read."""
    asked = plain.requests(plain.language_model(plain.GPT))
    whole = [scoring._sequence(request, None) for request in asked]
    order = sorted(range(len(asked)), key=lambda i: whole[i][0])
    (row,) = scoring._rows(order, whole, 2000, True)
    beginnings = {read[:stop] for read, _ in whole for stop in range(1, len(read) + 1)}
    assert len(row.tokens) == len(beginnings) < sum(len(read) for read, _ in whole) * 0.6
    for place, (depth, end) in enumerate(zip(row.depths, row.ends, strict=True)):
        deeper = [depth < other for other in row.depths[place + 1 :]]
        assert end == place + 1 + (deeper.index(False) if False in deeper else len(deeper))


@pytest.mark.slow
def test_eight_devices_give_what_one_does() -> None:
    lm = plain.language_model(plain.GPT)
    expected = [plain.say(lm, *request) for request in plain.requests(lm)]
    script = """
import json, jax
from tests.evaluation import plain
from lmjax.evaluation import scoring
scoring.SHORTEST, scoring.PLACES = 64, 256
lm = plain.language_model(plain.GPT)
assert jax.device_count() == 8
print(json.dumps(scoring.score(lm, plain.requests(lm))))
"""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    alike([Found(*one) for one in json.loads(done.stdout)], expected)


# ---- Requests -------------------------------------------------------------------------------------------------------

PAIRS = [
    ("the cat", " sat"),
    ("the cat ", "sat"),
    ("the cat \n ", "sat on"),
    ("the d", "og ran to"),  # one token over the border: what both have more than the context alone
    ("the cat sat", "."),
    ("dog", " "),
    ("a b", " the"),
]


def test_a_text_and_its_continuation_are_parted_in_front_of_the_blanks() -> None:
    lm = replace(plain.language_model(replace(plain.GPT, vocab_size=BPE.vocab_size)), tokenizer=BPE)
    for context, continuation in PAIRS:
        request = scoring.encode(lm, context, continuation)
        start = BPE.encode(context.rstrip())
        assert request == (tuple(start), tuple(BPE.encode(context + continuation)[len(start) :]))
    assert scoring.encode(lm, "the cat ", "sat") == scoring.encode(lm, "the cat", " sat")
    end = BPE.end_of_text
    for context in ("", " "):
        assert scoring.encode(lm, context, "the") == ((end,), tuple(BPE.encode(context + "the")))
    first = replace(lm, first=7)
    assert scoring.encode(first, "", "the") == ((7,), tuple(BPE.encode("the")))
    assert scoring.encode(first, "the", " cat") == ((7, *BPE.encode("the")), tuple(BPE.encode(" cat")))
    with pytest.raises(UserError, match="the continuation is empty"):
        scoring.encode(lm, "the cat", "")


def test_where_the_border_melts_away_the_last_token_is_predicted() -> None:
    lm = replace(plain.language_model(replace(plain.GPT, vocab_size=BPE.vocab_size)), tokenizer=BPE)
    apart, whole = BPE.encode("the ca"), BPE.encode("the cat")
    assert len(whole) <= len(apart)
    assert scoring.encode(lm, "the ca", "t") == (tuple(whole[:-1]), tuple(whole[-1:]))


def test_windows_predict_each_token_once_from_as_much_as_there_is() -> None:
    lm = plain.language_model(plain.GPT)
    text = ("the cat sat on the mat " * 9)[:103]
    ids, end = lm.tokenizer.encode(text), lm.ids("")[0]
    for context in (1, 2, 10, 48, 102, 103, 200):
        windows = scoring.rolling(lm, text, context=context)
        assert [token for window in windows for token in window.continuation] == ids
        assert windows[0].context == (end,)
        whole, position = [end, *ids], 1
        for window in windows:
            position += len(window.continuation)
            read = window.context + window.continuation
            assert list(read) == whole[position - len(read) : position]
            assert len(read) == min(context, len(ids)) + 1
    assert scoring.rolling(lm, text) == scoring.rolling(lm, text, context=48)
    assert scoring.rolling(lm, "") == []
    recurrent = plain.language_model(plain.FAMILIES["lstm"])
    assert scoring.rolling(recurrent, text) == [Request((end,), tuple(ids))]


def test_requests_are_those_of_the_harness() -> None:
    utils, model = pytest.importorskip("lm_eval.utils"), pytest.importorskip("lm_eval.api.model")
    lm = replace(plain.language_model(replace(plain.GPT, vocab_size=BPE.vocab_size)), tokenizer=BPE)

    class Asking(model.TemplateLM):
        backend = "causal"
        eot_token_id = BPE.end_of_text

        def tok_encode(self, string, **_):
            return BPE.encode(string)

        def _loglikelihood_tokens(self, requests, **_):
            return requests

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def generate_until(self, requests, disable_tqdm=False):
            raise NotImplementedError

    for context, continuation in PAIRS:
        theirs = Asking()._encode_pair(context, continuation)
        assert scoring.encode(lm, context, continuation) == tuple(map(tuple, theirs))
    text = "the cat sat on the mat " * 6
    for context in (1, 5, 48):
        windows = utils.get_rolling_token_windows(BPE.encode(text), BPE.end_of_text, context, 1)
        theirs = [tuple(map(tuple, utils.make_disjoint_window(window))) for window in windows]
        assert scoring.rolling(lm, text, context=context) == theirs
