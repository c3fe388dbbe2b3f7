"""What every decoder with a vocabulary can do: logits where they are asked for, the loss of the next token, metrics."""

import math

from .. import functional as F
from ..backend import array_namespace, empty, put_rows
from ..errors import InputError
from ..layers import INFERENCE, RUN, Layer, add_grads, prefixed
from .classifier import Model


class CausalLM(Model, Layer):
    """Base of the decoders with a language head: children `model` and `lm_head`.

    A batch is {input_ids, attention_mask, labels} (B, T), and optionally position_ids and segment_ids, for texts packed
    into one row. labels are not shifted: the token before a label predicts it, labels[:, t + 1] from h[:, t], and the
    label of a row's first token counts for nothing. So do those below 0 (-100 by convention), and that of a segment's
    first token, which nothing in its text comes before.
    """

    task_type, encoder, large = "CAUSAL_LM", "model", True
    output_modules = ("lm_head",)
    metrics = ("loss", "perplexity")

    def __init__(self, model, lm_head):
        super().__init__(children={"model": model, "lm_head": lm_head})

    def inputs(self, batch):
        return batch

    def tokens(self, batch):
        return math.prod(batch["input_ids"].shape)

    def forward(self, batch, run=RUN):
        """logits (B, T, V), or (B, m, V) of the tokens in `run.asked` (B, m)."""
        h, model_cache = self.children["model"](batch, run)
        if (asked := run.asked) is not None:
            xp = array_namespace(h)
            place = xp.broadcast_to(asked[:, :, None], (*asked.shape, h.shape[-1]))
            h = xp.take_along_axis(h, place, axis=1)  # (B, m, d)
        logits, head_cache = self.children["lm_head"](h, run)
        return logits, (model_cache, head_cache, asked is not None)

    def backward(self, dout, cache, need_dx=False):
        model_cache, head_cache, asked = cache
        if asked:
            raise InputError("logits of some tokens have no backward pass; leave `asked` out, or use loss_and_grad")
        model, head = self.children.values()
        dh, grads = head.backward(dout, head_cache, model.trains())
        grads = prefixed("lm_head", grads)
        if model.trains():
            grads |= prefixed("model", model.backward(dh, model_cache)[1])
        return None, grads

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def targets(self, batch):
        """(B, T) integers: what each token has to predict; below 0 where that counts for nothing."""
        if (labels := batch.get("labels")) is None or tuple(labels.shape) != tuple(batch["input_ids"].shape):
            came = None if labels is None else tuple(labels.shape)
            raise InputError(
                f"expected labels of the shape of input_ids, {tuple(batch['input_ids'].shape)}; got {came}"
            )
        xp, none = array_namespace(labels), 0 * labels[:, :1] - 100
        after = labels[:, 1:]
        if (segments := batch.get("segment_ids")) is not None:
            after = xp.where(segments[:, 1:] == segments[:, :-1], after, 0 * after - 100)
        return xp.concat([after, none], axis=1)

    def count(self, batch):
        """How many tokens the loss is a mean over: those that have a label, and something before them."""
        xp = array_namespace(targets := self.targets(batch))
        return int(xp.sum(xp.astype(targets >= 0, xp.int64)))

    def loss_and_grad(self, batch, run=RUN, share=1.0):
        """The mean loss in nats a token, and the gradients of `share` times it.

        Only hidden states that have something to predict meet the vocabulary, and their logits a chunk at a time.
        """
        model = self.children["model"]
        targets = self.targets(batch)
        h, cache = model(batch, run)
        inside = model.trains()
        loss, dh, grads = self._head_loss(h, targets, run, share, inside)
        grads = prefixed("lm_head", grads)
        if inside:
            grads |= prefixed("model", model.backward(dh, cache)[1])
        return loss, self.add_tied(grads)

    def evaluate(self, batch, run=INFERENCE):
        """(mean cross entropy in nats a token, perplexity = e^loss), as floats."""
        h, _ = self.children["model"](batch, run)
        loss = float(self._head_loss(h, self.targets(batch), run.but(keep=False), 1.0, False)[0])
        return loss, F.perplexity(loss)

    def _head_loss(self, h, targets, run, share, need_dh):
        """(loss, dh (B, T, d) or None, gradients of the head); without `run.keep` the loss alone."""
        head, xp, (B, T, d) = self.children["lm_head"], array_namespace(h), h.shape
        targets = xp.reshape(targets, (B * T,))
        (rows,) = xp.nonzero(targets >= 0)
        if not rows.shape[0]:
            raise InputError("no token of the batch has a label that counts: all are below 0, or begin a row")
        labels, own = xp.take(targets, rows), xp.take(F.rows(h), rows, axis=0)  # (n,), (n, d)
        trains = run.keep and head.trains()
        needs = {"h"} if need_dh else set()
        if (
            run.watch is None
            and (found := head.effective_weight(own.shape[0], run)) is not None
            and head.effective_bias is None
        ):
            weight, weight_cache = found
            loss, down, dW = F.language_loss(own, weight, labels, needs | ({"weight"} if trains else set()), share)
            grads = head.grads_of_weight(dW, None, weight_cache) if trains else {}
        else:
            loss, down, grads = self._through_head(own, labels, run, share, needs, trains)
        if not need_dh:
            return loss, None, grads
        dh = xp.zeros_like(F.rows(h))
        put_rows(dh, rows, down)
        return loss, xp.reshape(dh, (B, T, d)), grads

    def _through_head(self, h, labels, run, share, needs, trains):
        """The same where the head has no one weight for all rows (LoRA on it, with dropout or a few rows)."""
        head, N = self.children["lm_head"], h.shape[0]
        F.check_labels(labels, N, self.sizes.vocab_size)
        loss, dh, grads = 0.0, empty(h.shape, h), {}
        for part in F.chunks(N, self.sizes.vocab_size):
            logits, cache = head(h[part, :], run)
            own, dlogits = F.cross_entropy_(logits, labels[part], share / N)
            loss = loss + own
            if trains or needs:
                dpart, more = head.backward(dlogits, cache, bool(needs))
                add_grads(grads, more)
                if needs:
                    dh[part, :] = dpart
        return loss * (1 / N), dh, grads
