"""Slips in the variants of LoRA, each of its own kind; see `mutants`."""

VARIANTS = {
    "adapters.test_variants": {
        "adapters.base:Adapter.forward_apart": [
            ("dropout on the base, too", "forward(x - xd, run)", "forward(0 * x, run)"),
            ("no base under what is dropped", "forward(x - xd, run)", "forward(x, run)"),
        ],
        "adapters.base:Adapter._backward_apart": [
            ("dx without the mask", "(dxd - down) * M", "(dxd - down)"),
            ("W is not reached by way of the update", 'grads[f"{BASE}.weight"] + dW', 'grads[f"{BASE}.weight"]'),
        ],
        "adapters.dora:DoRALinear.effective_backward": [
            ("the norm is always a constant", "dW_eff if self.detach_norm else", "dW_eff if True else"),
            ("the norm is never a constant", "dW_eff if self.detach_norm else", "dW_eff if False else"),
            ("m not divided by the norm", "axis=1) / c", "axis=1)"),
        ],
        "adapters.dora:norms": [
            ("of columns", "axis=1", "axis=0"),
        ],
        "adapters.gralora:_blocks": [
            ("blocks of A by rows", "(2, 0, 3, 1)", "(0, 2, 3, 1)"),
        ],
        "adapters.gralora:GraLoRALinear.delta_backward": [
            ("A's blocks where B's go", "permute_dims(dA, (1, 3, 0, 2))", "permute_dims(dA, (0, 3, 1, 2))"),
            ("no scaling", "self.scaling * d_delta", "d_delta"),
        ],
        "adapters.lokr:LoKrLinear.delta_backward": [
            ("dC without D", "H @ xp.reshape(D", "H @ xp.reshape(0 * D + 1"),
            ("the second factor's gradient from itself", "a.T @ dM", "(dM.T @ a).T * 2"),
        ],
        "adapters.lokr:factors": [
            ("a factor that divides is passed over", "if factor > 0 and d % factor == 0:", "if False:"),
            ("above the root", "math.isqrt(d) if factor == -1", "d if factor == -1"),
        ],
        "adapters.miss:MiSSLinear._shards": [
            (
                "neighbours in place of shards",
                "(*x.shape[:-1], -1, self.r)), axis=-2",
                "(*x.shape[:-1], self.r, -1)), axis=-1",
            ),
        ],
        "adapters.miss:MiSSLinear._from_block": [
            ("the first copy alone", "xp.sum(xp.reshape(dD, (self.r, -1, own)), axis=1)", "dD[:, :own]"),
        ],
        "adapters.miss:MiSSLinear.backward": [
            ("dx without the mask", "branch if M is None else branch * M", "branch"),
        ],
        "adapters.ia3:IA3Linear.effective_backward": [
            ("along the wrong side", "axis = 1 if self.changes_bias else 0", "axis = 1"),
        ],
        "adapters.delora:along": [
            ("length not taken out", "inside * Mh * xp.sum", "0 * Mh * xp.sum"),
            ("a bound that moves", "> SMALLEST", "> 0"),
        ],
        "adapters.delora:DeLoRALinear.delta_backward": [
            ("w forgotten", "d_delta * self.w", "d_delta"),
            ("lambda's gradient not divided by r", "(1,)) / self.r", "(1,))"),
        ],
        "adapters.delora:unit": [
            ("along the other side", "axis=axis, keepdims", "axis=1 - axis, keepdims"),
        ],
        "adapters.fourierft:FourierFTLinear.delta_backward": [
            ("no scaling", "self.scaling * d_delta", "d_delta"),
        ],
        "adapters.loha:LoHaLinear.delta_backward": [
            ("its own pair for the other", "((B2, A2), (B1, A1))", "((B1, A1), (B2, A2))"),
        ],
        "adapters.vera:VeRALinear.delta_backward": [
            ("db without d", "Q @ d", "Q @ (0 * d + 1)"),
            ("dd without b", "Q.T @ b", "Q.T @ (0 * b + 1)"),
            ("B left out", "B * (d_delta @ A.T)", "d_delta @ A.T"),
        ],
        "adapters.vera:VeRALinear.projections": [
            ("the last columns of A", '["vera_A"][:, :d_in]', '["vera_A"][:, -d_in:]'),
        ],
        "adapters.projections:uniform_of": [
            ("the highest 24 bits", "numbers % 2**24", "numbers // 2**8"),
            ("from 0 to the bound", "float(high - low) + float(low)", "float(high)"),
        ],
        "adapters.projections:draws": [
            ("another seed", "seed % 2**32", "(seed + 1) % 2**32"),
        ],
        "adapters.randlora:RandLoRALinear.delta_backward": [
            ("dL without G", "xp.sum(K * G, axis=2)", "xp.sum(K, axis=2)"),
            ("dG over the copies", "xp.sum(K * L[:, :, None], axis=0)", "xp.sum(K, axis=0)"),
            ("no scaling", "self.scaling * A", "A"),
            ("a wide layer upside down", "d_delta.T", "d_delta[::-1].T"),
        ],
        "adapters.randlora:RandLoRALinear.projections": [
            ("the last copies of B", "[:M, :n, :]", "[:M, -n:, :]"),
        ],
        "adapters.peft_folder:_is_copy": [
            ("another array than the shared one", "np.array_equal(to_numpy(own), array)", "True"),
        ],
        "adapters.inject:_shared": [
            ("each layer draws its own", 'return {"shared": shared} if shared else {}', "return {}"),
        ],
        "adapters.peft_folder:_contents": [
            ("the file has what it says it leaves out", " if config.saves_shared}", "}"),
        ],
        "adapters.hira:HiRALinear.effective": [
            ("the factor without one", "factor += 1", "pass"),
        ],
    },
}
