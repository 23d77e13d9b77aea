"""The evaluator against lm-evaluation-harness with its own Hugging Face model, where the model names a BOS token.

Tolerance 1e-4, relative: float32 on both sides, sums in another order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import TokenizerConfig
from lmjax.data import tokenizer
from lmjax.evaluation.evaluator import evaluate
from lmjax.evaluation.settings import Settings
from lmjax.run import pretrained
from lmjax.tasks import render
from lmjax.tasks.spec import Task, TaskConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of their packages

TEXT = "The wren sang; the herd slept.\nA wren is a bird, a herd is many. Which? "
WORDS = tokenizer.build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), lambda: iter([TEXT]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A small random model with a BOS token that precedes no text by itself: lmjax's and the harness's."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    folder = tmp_path_factory.mktemp("model")
    end = WORDS.token_text(WORDS.end_of_text or 0)
    spoken = transformers.PreTrainedTokenizerFast(tokenizer_object=WORDS.backend, bos_token="<bos>", eos_token=end)
    spoken.save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ends = {"bos_token_id": spoken.bos_token_id, "eos_token_id": spoken.eos_token_id, "initializer_range": 0.4}
    config = transformers.LlamaConfig(vocab_size=len(spoken), max_position_embeddings=48, **sizes, **ends)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    theirs = huggingface.HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    return pretrained.load(Path(folder)), theirs


def built(kind: Any, rows: list[dict[str, Any]], **settings: Any) -> Task:
    return render.build_task(
        TaskConfig(name=kind, kind=kind, **settings), [(str(i), row) for i, row in enumerate(rows)]
    )


def asked(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


def test_texts_without_context_follow_the_bos_token(models: tuple[Any, Any]) -> None:
    lm, theirs = models
    assert theirs.prefix_token_id == lm.before()[0]
    texts = [(TEXT * n)[: 37 * n] for n in (1, 2, 5)]
    result = evaluate(lm, [built("perplexity", [{"text": text} for text in texts], prompt="{text}")])
    rolling = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in texts]))
    np.testing.assert_allclose([sample.metrics["logprob"] for sample in result.samples], rolling, rtol=1e-4)
    assert result.facts["first_token"] == "<bos>"
    texts = [text[:20] for text in texts]
    pairs = built("pairs", [{"good": text, "bad": text[::-1]} for text in texts], prompt="")
    found = [response[0] for sample in evaluate(lm, [pairs]).samples for response in sample.responses]
    both = [("", part) for text in texts for part in (text, text[::-1])]
    expected = [logprob for logprob, _ in theirs.loglikelihood(asked("loglikelihood", both))]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    other = evaluate(lm, [pairs], Settings(first_token="end")).samples[0].responses[0][0]
    assert abs(float(other) - expected[0]) > 1e-2


def test_the_perplexity_of_a_last_word_is_that_of_lambada(models: tuple[Any, Any]) -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    lm, theirs = models
    rows = [{"input": "The wren", "answer": "sang"}, {"input": "a herd is", "answer": "many. Which"}]
    scores = evaluate(lm, [built("match", rows)]).scores()["match", 0]
    requests = asked("loglikelihood", [(row["input"], " " + row["answer"]) for row in rows])
    logprobs = [logprob for logprob, _ in theirs.loglikelihood(requests)]
    assert scores["perplexity"].value == pytest.approx(metrics.perplexity(logprobs), rel=1e-4)
