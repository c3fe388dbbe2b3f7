"""PEFT's side, on PyTorch: the same model, batch, adapter, optimizer and threads. Needs the extra `oracle`."""

from ..errors import InputError
from ..hub import locate
from . import decoder
from .case import LABELS, RANDOM
from .devices import Host, TorchCuda


def peft(case):
    """(once, device) of PEFT's side: on "cuda" where ours is on CuPy."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    on_gpu = case.backend == "cupy"
    if on_gpu and not torch.cuda.is_available():
        raise InputError(f"the installed torch {torch.__version__} has no CUDA, or sees no GPU; lorabook uses one here")
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.seed)
    if on_gpu:
        torch.set_float32_matmul_precision("high" if case.tf32 else "highest")
    where = torch.device("cuda" if on_gpu else "cpu")
    config = case.config()
    if case.what == "generate":
        return decoder.generate_there(config, case)
    decodes = decoder.decodes(config)
    kind = "CAUSAL_LM" if decodes else "SEQ_CLS"
    adapter = LoraConfig(
        task_type=kind, r=case.r, lora_alpha=16, lora_dropout=0.0, target_modules=list(case.target_modules)
    )
    base = decoder.network_there(config) if decodes else _network(case, transformers)
    model = get_peft_model(base, adapter).to(where)
    ids, labels = (torch.tensor(a, device=where) for a in case.batch(model.config.vocab_size).values())
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    device = TorchCuda(torch) if on_gpu else Host()
    if case.what == "forward":
        return _forward(model.merge_and_unload().eval(), batch, torch), device
    return _step(model.train(), batch | {"labels": labels}, torch), device


def _step(model, batch, torch):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0.0)

    def step():
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def _forward(model, batch, torch):
    @torch.inference_mode()
    def forward():
        model(**batch)

    return forward


def _network(case, transformers):
    transformers.logging.set_verbosity_error()
    kind = transformers.AutoModelForSequenceClassification
    if case.model in RANDOM:
        config = transformers.AutoConfig.for_model(**RANDOM[case.model])
    else:
        config = transformers.AutoConfig.from_pretrained(locate(case.model))
    config.num_labels = LABELS
    for rate in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if hasattr(config, rate):
            setattr(config, rate, 0.0)
    if case.model in RANDOM:
        return kind.from_config(config)
    return kind.from_pretrained(locate(case.model), config=config).float()
