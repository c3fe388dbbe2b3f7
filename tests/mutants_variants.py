"""Slips in the variants of LoRA, each of its own kind; see `mutants`."""

VARIANTS = {
    "adapters.test_starts": {
        "adapters.starts.pissa:pissa": [
            ("the smallest first", "S[:r]", "S[-r:]"),
            ("not divided by the scaling", "S[:r] / scaling", "S[:r]"),
            ("all of S on one side", "root[:, None] * Vh[:r]", "root[:, None] ** 2 * Vh[:r]"),
        ],
        "adapters.starts.olora:olora": [
            ("the last rows of R", "return R[:r]", "return R[-r:]"),
            ("the last columns of Q", "R[:r], Q[:, :r]", "R[:r], Q[:, -r:]"),
            ("of the transposed weight", "np.linalg.qr(W)", "np.linalg.qr(W.T)"),
        ],
        "adapters.starts.orthogonal:orthogonal": [
            ("the same half twice", "@ Q[1::2]", "@ Q[0::2]"),
            ("no orthogonal matrix", "np.linalg.qr(rng.standard_normal((r, r)))[0]", "rng.standard_normal((r, r))"),
            ("A ten times as large", "(r // 2, d_in)) / 10", "(r // 2, d_in))"),
            ("B ten times as large", "@ Q[1::2] / 10", "@ Q[1::2]"),
        ],
        "adapters.starts.mica:mica": [
            ("the principal components", "U[:, U.shape[1] - r :]", "U[:, :r]"),
            ("A moves", "np.zeros(", "np.ones("),
            ("the right singular vectors", "np.linalg.svd(W,", "np.linalg.svd(W @ W.T @ np.diag(range(len(W))),"),
        ],
        "adapters.starts.residual:Residual.__init__": [
            ("the scaling forgotten", "scaling * (B @ A)", "(B @ A)"),
            ("twice taken out", "scaling * (B @ A)", "2 * scaling * (B @ A)"),
            ("put in, not taken out", "- scaling", "+ scaling"),
            ("a bias of its own", "original.bias)", "None)"),
            ("what is left trains", "self.freeze()", "pass"),
            ("the factors change places", '"start_A": asarray_like(A,', '"start_A": asarray_like(B.T,'),
        ],
        "adapters.starts.residual:Residual.change_arrays": [
            ("what is kept aside stays", "self.original.change_arrays(change)", "pass"),
        ],
        "adapters.starts.residual:original": [
            ("what is left for good", "base.original if isinstance(base, Residual) else base", "base"),
        ],
        "adapters.starts.plain:as_plain": [
            ("the start added", "[B, -B0], axis", "[B, B0], axis"),
            ("alpha stays", "lora_alpha=grown * config", "lora_alpha=config"),
            ("alpha doubled with rsLoRA", "math.sqrt(2) if config.use_rslora else 2", "2"),
            ("patterns of the rank stay", "2 * r for", "r for"),
            ("patterns of alpha stay", "grown * alpha for", "alpha for"),
            ("still called by its start", ", init_lora_weights=True)", ")"),
        ],
        "adapters.starts.table:begin": [
            ("what rests trains", "layer.rests = start.rests", "pass"),
            ("the base stays", "start is None or not start.moves", "True"),
            ("one seed for all", "0 if rng is None else rng", "0"),
        ],
        "adapters.starts.table:check_start": [
            ("few bits are moved", "start.moves and not base.dense", "False"),
            ("no look at the weight", "not np.isfinite(to_numpy(base.weight)).all()", "False"),
            ("any scaling", "not scaling > 0", "False"),
        ],
        "adapters.whole_model:base_params": [
            ("what is left for the base", " | before", ""),
        ],
        "adapters.base:Adapter.start": [
            ("what rests trains", " - self.rests", ""),
        ],
        "adapters.inject:unload": [
            ("what is left stays", "original(child.base_layer)", "child.base_layer"),
        ],
        "adapters.inject:unfreeze": [
            ("what rests trains", " - layer.rests", ""),
        ],
        "adapters.inject:inject": [
            ("layers change before all are looked at", "cls.check_base(linears[path], path, **options[path])", "pass"),
        ],
        "adapters.starts.table:moves_base": [
            ("an update over another base", "init_lora_weights in STARTS and STARTS[init_lora_weights].moves", "False"),
        ],
        "adapters.lora_config:_initialisation": [
            ("read as if the base had stayed", "return name\n    if name ==", "return True\n    if name =="),
        ],
        "adapters.dora:DoRALinear.__init__": [
            ("the norm of what was there before", "self.base_layer.weight", "base.weight"),
        ],
    },
    "adapters.test_convert": {
        "adapters.convert:_factors": [
            ("B holds all of S", "B / root", "B"),
            ("A without its half of S", "A * root[:, None]", "A"),
        ],
        "adapters.convert:_update": [
            ("held against what the start left", "original(layer.base_layer).weight", "layer.weight"),
        ],
        "adapters.convert:to_lora": [
            ("the error of one rank more", "min(r, len", "min(r + 1, len"),
            ("lora_alpha of the default", "lora_alpha=r", "lora_alpha=8"),
        ],
    },
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
            ("the last columns of A", "A[:, :d_in]", "A[:, -d_in:]"),
        ],
        "adapters.pytorch:uniform_of": [
            ("the highest 24 bits", "numbers % 2**24", "numbers // 2**8"),
            ("from 0 to the bound", "float(high - low) + float(low)", "float(high)"),
        ],
        "adapters.pytorch:draws": [
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
