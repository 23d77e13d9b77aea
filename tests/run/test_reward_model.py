"""The reward model of a policy: its scores, its digest in the journal, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import BatchConfig, Config, PPOConfig, UserError
from lmjax.config.rewards import LearnedRewardConfig
from lmjax.data.store import preparation
from lmjax.diagnose import audit
from lmjax.journal import journal
from lmjax.pytrees import digest
from lmjax.run import build, episodes, feed, launch, reward_model, saved
from lmjax.run.resume import resume
from lmjax.system import faults
from tests import small


@pytest.fixture(scope="module")
def judge(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small reward model."""
    config = small.config("reward", corpus)
    folder = tmp_path_factory.mktemp("judge") / "run"
    assert launch.start(replace(config, train=replace(config.train, updates=2, evaluate_every=0)), folder) == 0
    return folder


def config(corpus: Path, judge: Path | str) -> Config:
    """Two updates of eight prompts with two answers each."""
    reward = LearnedRewardConfig(run=str(judge))
    base = small.policy(small.config("chat", corpus), PPOConfig(group=2, answer_tokens=8, reward=reward))
    return replace(base, train=replace(base.train, updates=2, evaluate_every=0))


def prepared(config: Config) -> build.Run:
    return build.build(config, preparation.prepare(config.data))


@pytest.mark.slow
def test_answers_get_the_scores_that_the_reward_model_gives_to_their_texts(corpus: Path, judge: Path) -> None:
    """`RewardModel.answer` prints three decimals of the score of the text, whose end it adds."""
    run = prepared(config(corpus, judge))
    parts, batch = episodes.Episodes(run), next(iter(feed.device_batches(run, 0, 0))).batch
    answers = parts.sample(build.init(run).params, batch["arrays"], jnp.int32(0))
    texts = parts.texts(answers)
    values_R = parts.scores("train", answers, texts).values_B
    loaded = saved.load(judge)
    finished_R = np.asarray(answers.rollout.finished_B)
    ids_RP, mask_RP = (np.asarray(x) for x in answers.prompts)
    rows_RN, real_RN = np.asarray(answers.rollout.tokens_BN), np.asarray(answers.rollout.mask_BN)
    end = parts.objective.samples.control.end
    for row in range(len(texts)):
        ids = [*ids_RP[row][mask_RP[row]], *rows_RN[row][real_RN[row]][:-1], end]
        score = loaded.model.apply({"params": loaded.params}, jnp.asarray([ids]), last_B=jnp.asarray([len(ids) - 1]))
        assert values_R[row] == pytest.approx(float(np.asarray(score)[0]), abs=1e-5)
    assert not finished_R.all()  # some were cut, and their last token is read as the end
    assert np.ptp(values_R) > 1e-3


@pytest.mark.slow
def test_the_journal_pins_the_reward_model(
    corpus: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "judge"
    shutil.copytree(judge, own)
    settings, run_dir = config(corpus, own), tmp_path / "run"
    with faults.armed("episode.rewarded=error@2"), pytest.raises(OSError, match="error"):
        launch.start(settings, run_dir)
    start = journal.read(run_dir / "journal.jsonl")[0]
    assert start["reward_sha256"] == digest(saved.load(own).params)
    assert json.loads((run_dir / "config.json").read_text())["objective"]["reward"]["run"] == str(own)

    shutil.rmtree(own / "checkpoints" / "2")  # the model is now that of update 0
    with pytest.raises(UserError, match=r"has scores without a scale at update 0: .*--resume"):
        resume(settings, run_dir)
    assert audit.show(run_dir) == 1
    shutil.rmtree(own / "checkpoints")
    assert audit.show(run_dir) == 1  # no checkpoint can be read; the audit reports it and checks the rest

    shutil.rmtree(own)
    with pytest.raises(UserError, match=r"objective.reward.run=.* is not a run"):
        resume(settings, run_dir)
    assert audit.show(run_dir) == 1
    shutil.copytree(judge, own)
    with monkeypatch.context() as patch:
        reward_model._load.cache_clear()
        patch.setattr(reward_model, "digest", lambda params: "0" * 64)
        with pytest.raises(UserError, match=r"the reward changed since the run began"):
            resume(settings, run_dir)
        reward_model._load.cache_clear()
    assert resume(settings, run_dir) == 0
    assert audit.show(run_dir, replay=(1, 2)) == 0
    with pytest.raises(UserError, match=r"has objective.family=ppo; give the run of a reward model"):
        reward_model.judge_of(prepared(config(corpus, run_dir)))


@pytest.mark.slow
def test_an_unfit_reward_model_is_refused(corpus: Path, judge: Path, tmp_path: Path) -> None:
    run = prepared(config(corpus, judge))

    def refused(changed: Any) -> str:
        with pytest.raises(UserError) as raised:
            reward_model.judge_of(changed)
        return str(raised.value)

    assert reward_model.judge_of(run) is not None
    missing = prepared(config(corpus, tmp_path / "runs" / "reward"))
    assert "is not a run: it has no config.json; train this stage first with `python train.py reward`" in refused(
        missing
    )
    tokens = replace(run.config.data, tokenizer=replace(run.config.data.tokenizer, reserved=9))
    other = config(corpus, judge)
    assert "has another tokenizer than the policy" in refused(prepared(replace(other, data=tokens)))
    batch = BatchConfig(tokens=((0, 8 * 2 * 300),), microbatch=2)
    wide = replace(other, model=replace(run.config.model, context=300, vocab_size=0), batch=batch)
    assert "reads at most 256 tokens, and model.context=300" in refused(prepared(wide))


def test_verifiable_rewards_have_no_reward_model(corpus: Path) -> None:
    run: Any = type("Run", (), {"config": small.config("chat", corpus)})
    assert reward_model.judge_of(run) is None
    assert reward_model.fingerprint(run) == {}
