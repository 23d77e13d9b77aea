"""Next-token prediction, with and without a recurrent state carried between windows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import CausalConfig, Config, RNNConfig, UserError
from lmjax.data.batches.windows import predicted, unpredicted
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.generate import generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.models import ngram, rnn
from lmjax.objectives import losses
from lmjax.objectives.next_token import NextToken
from lmjax.objectives.objective import Loss, Objective
from lmjax.objectives.text_samples import CarriedSamples, TextSamples

BASELINE_TOKENS = 20_000_000


@dataclass(frozen=True, eq=False)
class Causal(NextToken):
    """Next-token prediction (GPT, NNLM, RNN).

    An objective with another loss over the same windows overrides `loss`, and `by_row` if rows are to be compared by
    that loss and not by their cross-entropy.
    """

    samples: TextSamples

    samples_type = TextSamples

    @classmethod
    def variant(cls, config: Config) -> type[Objective]:
        """Return `Carried` for a recurrent model with `model.carried`.

        Raises:
            UserError: A subclass with another loss would have to carry the state.
        """
        carried = isinstance(config.model, RNNConfig) and config.model.carried
        if carried and cls is not Causal and not issubclass(cls, Carried):
            raise UserError(
                f"model.carried=true is for objective.family=causal, not {config.objective.family}; set "
                "model.carried=false"
            )
        return Carried if carried and cls is Causal else cls

    def _settings(self, train: bool) -> CausalConfig:
        """Return the configuration of the loss; regularization is off for measurements."""
        settings = self.config.objective
        if not isinstance(settings, CausalConfig):  # of a user's objective
            return CausalConfig()
        return settings if train else CausalConfig(chunk=settings.chunk)

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` and `val_bits_per_byte` from the sums over the validation split."""
        loss = totals["loss"] / totals["weight"]
        bits = {} if self.samples.store.lossless is False else {"val_bits_per_byte": self.bits_per_byte(loss)}
        return {"val_loss": loss} | bits

    def notes(self) -> list[str]:
        """Return a line if bits per byte are not comparable across tokenizers."""
        lossless = self.samples.store.lossless
        if lossless:
            return []
        if lossless is None:
            return [
                "bits per byte: the prepared data do not say whether the tokenizer gives the text back; if it does "
                "not, they do not compare with other tokenizers"
            ]
        return [
            "bits per byte: none, because the tokenizer does not give the text back: the bytes that it loses would "
            "cost nothing"
        ]

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Convert a validation loss to bits per byte of text.

        It is comparable across tokenizers that lose no text.
        """
        store, packing = self.samples.store, self.samples.packing
        tokens = store.validation
        first_ids, counts = np.unique(tokens.ids[unpredicted(tokens, **packing)], return_counts=True)
        sizes = [store.tokenizer.nbytes(np.array([id])) for id in first_ids]  # each begins a document
        nats = nats_per_token * predicted(tokens, **packing)
        return nats / math.log(2) / (tokens.bytes - int(counts @ np.array(sizes)))

    def baselines(self) -> dict[str, float]:
        """Return the bits per byte of two baselines on the validation split.

        The baselines are a byte unigram and an interpolated Kneser-Ney 5-gram. Both count at most `BASELINE_TOKENS`
        training tokens, the same number from the start of each source. With a tokenizer that loses text, the only
        baseline is the loss of the 5-gram, which predicts the same tokens as the model.
        """
        store = self.samples.store
        tokenizer, sources = store.tokenizer, store.sources
        training = [np.asarray(tokens.ids[: BASELINE_TOKENS // len(sources)]) for tokens in sources]
        validation, end = np.asarray(store.validation.ids), tokenizer.end_of_text

        def text(ids: np.ndarray) -> bytes:
            return tokenizer.decode(ids[ids != end] if end is not None else ids).encode()

        nats = ngram.kneser_ney(training, validation, vocab_size=tokenizer.vocab_size, order=5, end_of_text=end)
        loss = nats / (len(validation) - 1)
        if store.lossless is False:
            return {"kneser_ney_5gram_loss": loss}
        return {
            "unigram_bits_per_byte": ngram.unigram_bits_per_byte(b"".join(map(text, training)), text(validation)),
            "kneser_ney_5gram_bits_per_byte": self.bits_per_byte(loss),
        }

    def sample(self, params: Any) -> str:
        """Continue `train.sample_prompt` (empty: the beginning of a document)."""
        train, tokenizer = self.config.train, self.samples.store.tokenizer
        settings = {"max_tokens": train.sample_tokens, "temperature": 0.8, "seed": self.config.seed}
        try:
            return self.answer(params, train.sample_prompt, tokenizer=tokenizer, past_end=True, **settings)
        except UserError as error:  # a sample does not end a run
            return f"no sample: {error}"

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the prompt (empty: the beginning of a document) and its continuation."""
        lm = LanguageModel(self.model, params, tokenizer)
        return prompt + generate(lm, [prompt], sampling=Sampling(**settings))[0]


@dataclass(frozen=True, eq=False)
class Carried(Causal):
    """Next-token prediction in which each row starts from the state after its previous window.

    A row whose window does not follow its previous window (a new epoch, excluded data) starts from a zero state.
    """

    samples: CarriedSamples

    samples_type = CarriedSamples

    def begin(self, rows: tuple[int, ...]) -> Any:
        """Return the initial carry of the rows of the first batch."""
        model = self.config.model
        assert isinstance(model, RNNConfig)
        count = math.prod(rows)
        carry = {"state": rnn.begin(model, count), "place": jnp.full(count, -1, jnp.int32)}
        return jax.tree.map(lambda leaf: leaf.reshape(*rows, *leaf.shape[1:]), carry)

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch, and the carry."""
        if carry is None:
            carry = self.begin((len(batch["inputs_BT"]),))
        follows_B = carry["place"] == batch["follows_B"]
        state = jax.tree.map(
            lambda x: jnp.where(follows_B.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)), carry["state"]
        )
        loss, weight, sums, state = losses.causal(
            self.model, params, batch, rng=rng, carry=state, config=self._settings(train), train=train
        )
        return Loss(loss, weight, sums, {"state": jax.lax.stop_gradient(state), "place": batch["place_B"]})
