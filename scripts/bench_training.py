"""NERV training: samples a second of our network beside NERV written plainly in torch, in the same run.

    python scripts/bench_training.py                       GPU (or CPU, slow): batch 1024 as in the paper, fp32, bf16, with and without torch.compile
    python scripts/bench_training.py --tiny                small batch, few steps: shows that the script runs

One step is forward, InfoNCE, backward, AdamW (fused) on EEG that already lies on the device; random numbers in the shape of EEG (63 channels, 250 samples)
and of ViT-H-14 embeddings. The plain network has convolution and pooling as two layers and `nn.TransformerEncoderLayer` for the first block; it is checked
in this run to give our outputs from the same weights. All variants take turns, `--repeats` rounds of `--steps` steps after warm-up (compilation happens there); the table
shows the median round. "fit" is `necomimi.training.fit` as a user calls it: reading, averaging repetitions and scaling included, mean of its epochs after the first.
"""
import argparse, math, statistics, time
import numpy as np, pandas as pd, torch
from torch import nn

class Residual(nn.Module):
    def __init__(self, *layers): super().__init__(); self.fn = nn.Sequential(*layers)
    def forward(self, x): return x + self.fn(x)

class PlainNERV(nn.Module):
    "NERV (spec 3.1) layer by layer, with the reference checkpoints' tensor names, so that `NERV.from_reference` can take its weights."
    def __init__(self, n_chans=63, n_times=250, n_outputs=1024, k=40):
        super().__init__()
        position, step = torch.arange(n_times)[:, None], torch.exp(torch.arange(0, n_chans, 2)*(-math.log(10000.)/n_chans)); pe = torch.zeros(n_times, n_chans)
        pe[:, 0::2], pe[:, 1::2] = torch.sin(position*step), torch.cos(position*step)[:, :n_chans//2]
        layer = nn.TransformerEncoderLayer(n_chans, 1, 2048, .1, batch_first=True)
        self.attention_model = nn.ModuleDict(dict(pos_encoder=nn.Module(), transformer_encoder=nn.ModuleDict(dict(layers=nn.ModuleList([layer])))))
        self.attention_model.pos_encoder.register_buffer("pe", pe)
        self.subject_wise_linear = nn.Sequential(nn.Linear(n_times, n_times))
        attend = lambda heads, drop=0.: nn.MultiheadAttention(k, heads, dropout=drop, batch_first=True)
        pool, tokens = nn.AvgPool2d((1, 51), (1, 5)), (n_times-25-51+1)//5+1
        self.enc_eeg = nn.ModuleDict(dict(
            tsconv=nn.Sequential(nn.Conv2d(1, k, (1, 25)), pool, nn.BatchNorm2d(k), nn.ELU(), nn.Conv2d(k, k, (n_chans, 1)), nn.BatchNorm2d(k), nn.ELU(), nn.Dropout(.5)),
            stconv=nn.Sequential(nn.Conv2d(1, k, (n_chans, 1)), nn.BatchNorm2d(k), nn.ELU(), nn.Conv2d(k, k, (1, 25)), pool, nn.BatchNorm2d(k), nn.ELU(), nn.Dropout(.5)),
            self_attn_ts=attend(5), self_attn_st=attend(5), cross_attn=attend(8, .75), norm1=nn.LayerNorm(k), norm2=nn.LayerNorm(k), norm3=nn.LayerNorm(k),
            feed_forward=nn.Sequential(nn.Flatten(), nn.Linear(2*tokens*k, 2048), nn.ReLU(), nn.Dropout(.5), nn.Linear(2048, 1440))))
        self.proj_eeg = nn.Sequential(nn.Linear(1440, n_outputs), Residual(nn.GELU(), nn.Linear(n_outputs, n_outputs), nn.Dropout(.5)), nn.LayerNorm(n_outputs))
        self.register_buffer("logit_scale", torch.tensor(math.log(1/.07)))

    def forward(self, x):
        e = self.enc_eeg
        x = self.attention_model.transformer_encoder.layers[0](x.transpose(1, 2)+self.attention_model.pos_encoder.pe).transpose(1, 2)
        x = self.subject_wise_linear(x); x = nn.functional.layer_norm(x, x.shape[1:])[:, None]
        t, s = (e[c](x).flatten(2).transpose(1, 2) for c in ("tsconv", "stconv"))
        t, s = (norm(y+attention(y, y, y, need_weights=False)[0]) for y, attention, norm in ((t, e.self_attn_ts, e.norm1), (s, e.self_attn_st, e.norm2)))
        x = torch.cat([t, s], 1); x = e.norm3(x+e.cross_attn(x, x, x, need_weights=False)[0])
        return self.proj_eeg(e.feed_forward(x))

class Trainer:
    "One variant: `round(n)` trains n steps and returns samples a second."
    def __init__(self, network, bf16, compile, x, y, lr=2e-4):
        from necomimi.training import Contrast
        self.device, self.x, self.y, self.bf16 = x.device, x, y, bf16
        self.network, self.contrast = network.to(x.device).train(), Contrast().to(x.device)
        self.optimiser = torch.optim.AdamW([*self.network.parameters(), *self.contrast.parameters()], lr=lr, fused=True)
        if compile: self.network.compile(**compile)

    def wait(self):
        if self.device.type == "cuda": torch.cuda.synchronize(self.device)

    def round(self, steps):
        self.wait(); t0 = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16): z = self.network(self.x)
            loss = self.contrast(z, self.y)
            self.optimiser.zero_grad(); loss.backward(); self.optimiser.step(); self.contrast.clamp_()
        self.wait(); seconds = time.perf_counter()-t0
        if not math.isfinite(loss.item()): raise SystemExit(f"the loss became {loss.item()}")
        return steps*len(self.x)/seconds

def same_outputs(plain, ours, x):
    plain.eval(), ours.eval()
    with torch.no_grad(): return float((plain(x)-ours(x)).abs().max())

def fit_rate(bf16, batch, n, epochs, device):
    "Samples a second of `fit` over its epochs after the first."
    from necomimi.training import TrainConfig, fit
    rng = np.random.default_rng(0); eeg = rng.standard_normal((n, 4, 63, 250), dtype=np.float32); targets = rng.standard_normal((n, 1024), dtype=np.float32)
    r = fit(eeg, targets, concepts=[f"c{i}" for i in range(n)], config=TrainConfig(epochs=epochs+1, batch_size=batch, val_fraction=0., amp=bf16), progress=False, device=device)
    h = r.history.iloc[1:]; return float(h.samples.sum()/h.seconds.sum())

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tiny", action="store_true"); p.add_argument("--batch", type=int, help="default 1024; 16 with --tiny"); p.add_argument("--steps", type=int, help="steps a round, default 20; 2 with --tiny")
    p.add_argument("--repeats", type=int, default=5); p.add_argument("--no-compile", action="store_true"); p.add_argument("--compile-mode", default="default"); p.add_argument("--json", help="also write the table here")
    a = p.parse_args(argv); batch, steps = a.batch or (16 if a.tiny else 1024), a.steps or (2 if a.tiny else 20)
    from necomimi.nerv import NERV
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu"); cuda = device.type == "cuda"
    print(f"NERV training, batch {batch}, (63, 250) -> 1024; {torch.cuda.get_device_name(device) if cuda else f'CPU, {torch.get_num_threads()} thread(s)'}; torch {torch.__version__}")
    torch.manual_seed(0); plain = PlainNERV(); state = {k: v.clone() for k, v in plain.state_dict().items()}; new = lambda: NERV.from_reference(state)
    x, y = torch.randn(batch, 63, 250).to(device), torch.randn(batch, 1024).to(device)
    apart = same_outputs(plain.to(device), new().to(device), x[:64]); print(f"same weights, greatest difference of outputs: {apart:.1e}")
    if apart > (2e-2 if cuda else 2e-4): raise SystemExit("the two networks are not the same")          # on a GPU convolutions may run in TF32
    how = dict(mode=a.compile_mode) if cuda else dict(backend="eager")
    twin = PlainNERV(); twin.load_state_dict(state)
    variants = {"plain torch fp32": Trainer(plain, False, None, x, y), "plain torch bf16": Trainer(twin, True, None, x, y)}
    variants |= {f"necomimi {k}{' compiled' if c else ''}": Trainer(new(), k == "bf16", c, x, y) for c in ((None,) if a.no_compile else (None, how)) for k in ("fp32", "bf16")}
    for t in variants.values(): t.round(3)
    rates = {k: [] for k in variants}
    for _ in range(a.repeats):
        for k, t in variants.items(): rates[k].append(t.round(steps))
    rows = [dict(what=k, **{"samples/s": statistics.median(v), "least": min(v), "most": max(v)}) for k, v in rates.items()]
    variants.clear(); n = 2*batch if a.tiny else 8*batch
    for k in ("fp32", "bf16"): rows.append(dict(what=f"fit {k}", **{"samples/s": fit_rate(k == "bf16", batch, n, 1 if a.tiny else a.repeats, device)}))
    table = pd.DataFrame(rows); table["x plain fp32"] = table["samples/s"]/table["samples/s"][0]
    print(table.to_string(index=False, float_format=lambda v: f"{v:,.2f}"))
    if not cuda: print("compiled here = traced, backend \"eager\": on a CPU this only shows that tracing works.")
    if a.json: table.to_json(a.json, orient="records", indent=1)
    return table

if __name__ == "__main__": main()
