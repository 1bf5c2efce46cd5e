"""All studies on the pocket model, as the docs show them.

    python -m eepolicy.analysis.studies WORK --write docs/findings/generated

WORK keeps what was measured, study by study: stopped and run again, it goes on.  Without speech
recognition (`make compare` installs it) the studies that listen are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from eepolicy import Document, HookedModel, held_out, load, probe
from eepolicy.analysis.studies.acceptance import Dial, dial
from eepolicy.analysis.studies.calibration import reliability
from eepolicy.analysis.studies.drift import Drift, drift
from eepolicy.analysis.studies.fixed_depth import Oracle, oracle
from eepolicy.analysis.studies.heads import MEASURES as HEAD_MEASURES
from eepolicy.analysis.studies.heads import head_gain
from eepolicy.analysis.studies.layers import place_figure, token_statistics
from eepolicy.analysis.studies.sequences import by_modality, sequence_statistics
from eepolicy.analysis.style import figures
from eepolicy.errors import EepolicyError
from eepolicy.fitting.replies import generate_replies
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.speech import asr, mos

Questions = Sequence[dict[str, Any]]

#: policies and fills whose drift is shown, at a share of full depth
EXIT = 0.7
ORACLE_DEPTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class Study:
    """The questions, the model, and where what is measured and drawn goes.

    Args:
        model: the pocket model.
        questions: held-out ones.
        work: folder of what was measured.
        to: folder of tables and figures.
    """

    def __init__(self, model: HookedModel, questions: Questions, work: Path, to: Path) -> None:
        self.model, self.questions, self.work, self.to = model, questions, work, to
        work.mkdir(parents=True, exist_ok=True)
        self._check_work()
        to.mkdir(parents=True, exist_ok=True)

    def _check_work(self) -> None:
        """Refuse a folder of measurements of another model, other heads or other questions."""
        asked = hashlib.sha256("\n".join(q["question"] for q in self.questions).encode())
        told = {
            "model": fingerprint(self.model.model),
            "heads": digest(self.model.heads),
            "questions": f"{len(self.questions)} {asked.hexdigest()[:12]}",
        }
        file = self.work / "study.json"
        if not file.exists():
            file.write_text(json.dumps(told))
        elif json.loads(file.read_text()) != told:
            raise EepolicyError(
                f"{self.work} holds measurements of another model, other heads or other questions; "
                "take another folder"
            )

    def write(self, name: str, table: str, figure: Figure | None = None) -> None:
        """A table as Markdown, and a figure as SVG and PNG."""
        (self.to / f"{name}.md").write_text(table + "\n")
        if figure is not None:
            figure.savefig(self.to / f"{name}.svg")
            figure.savefig(self.work / f"{name}.png", dpi=150)

    def kept(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of measurements: read where it was made before."""
        file = self.work / f"{name}.csv"
        if not file.exists():
            part = file.with_suffix(".part")
            make().to_csv(part, index=False)
            part.replace(file)
        return pd.read_csv(file)

    def replies(self) -> list[Document]:
        """The model's full-depth replies."""
        asked = [q["question"] for q in self.questions]
        return generate_replies(
            self.model, asked, save=self.work / "replies.jsonl", progress=_shown("replies")
        )

    def heads(self) -> None:
        """What the fitted heads bring."""
        found = head_gain(self.model, self.replies())
        tables = "\n\n".join(found.table(measure) for measure in HEAD_MEASURES)
        self.write("heads", tables, found.figure())

    def layers(self) -> None:
        """Token statistics and the reliability of confidence, with the fitted heads."""
        result = probe(self.model, self.replies(), save=self.work / "probe")
        found = token_statistics(result)
        some = tuple(round(self.model.depth * q) for q in (0.25, 0.5, 0.75, 1.0))
        self.write("statistics", found.table(some), found.figure())
        layout, exit_depth = self.model.layout, round(EXIT * self.model.depth)
        places = {"text": layout.text_chunk, "speech": layout.speech_chunk}
        by_place = place_figure(result, exit_depth, places)
        by_place.savefig(self.to / "places.svg")
        by_place.savefig(self.work / "places.png", dpi=150)
        sure = reliability(result)
        self.write("reliability", sure.table(), sure.figure(exit_depth))

    def sequences(self) -> None:
        """Units and text tokens as sequences."""
        found = sequence_statistics(by_modality(self.model.layout, self.replies()))
        self.write("sequences", found.table(), found.figure())

    def drift(self) -> None:
        """What drifts between refreshes."""
        depth = round(EXIT * self.model.depth)
        policies = [f"static@{depth}", f"spark:even@{depth}", f"spark:triple@{depth}"]
        policies.append(f"spark:FEEEEEEE@{depth}")
        asked = [q["question"] for q in self.questions]
        parts = []
        for policy in policies:
            for fill in ("catch_up", "propagate", "mask"):
                name = "".join(c if c.isalnum() else "-" for c in f"drift-{policy}-{fill}")
                if not (self.work / f"{name}-replies.csv").exists():
                    run = [(policy, fill)]
                    found = drift(self.model, asked, run, progress=_shown(f"{policy} {fill}"))
                    self.kept(f"{name}-tokens", lambda f=found: f.tokens)  # type: ignore[misc]
                    self.kept(f"{name}-replies", lambda f=found: f.replies)  # type: ignore[misc]
                parts.append(
                    [pd.read_csv(self.work / f"{name}-{k}.csv") for k in ("tokens", "replies")]
                )
        tokens, replies = (pd.concat(p) for p in zip(*parts, strict=True))
        whole = Drift(tokens, replies, self.model.layout.speech_chunk)
        self.write("drift", whole.table(), whole.figure("kl"))

    def oracle(self) -> None:
        """The paper's Table 1."""
        depths = [round(q * self.model.depth) for q in ORACLE_DEPTHS]

        def make() -> pd.DataFrame:
            asked = tqdm(self.questions, "oracle replies")
            outs = [self.model.generate(q["question"]) for q in asked]
            return oracle(
                self.model,
                outs,
                depths,
                asr=asr.Whisper(),
                mos=None if mos.missing_mos() else mos.DistillMos(),
                progress=_shown("oracle"),
            ).rows

        found = Oracle(self.kept("oracle", make))
        self.write("oracle", found.table(), found.figure())

    def dial(self) -> None:
        """From SPAR-K to lossless."""
        policy = f"spark:triple@{round(EXIT * self.model.depth)}"

        def make() -> pd.DataFrame:
            return dial(
                self.model,
                self.questions,
                policy,
                asr=asr.Whisper(),
                progress=_shown("dial"),
            ).rows

        found = Dial(self.kept("dial", make), policy, self.model.depth)
        self.write("dial", found.table(), found.figure())


def _shown(what: str) -> Callable[[Any], Any]:
    return lambda items: tqdm(items, what)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--write", type=Path, default=Path("docs/findings/generated"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    silent = ("heads", "layers", "sequences", "drift")
    parser.add_argument("--only", nargs="+", choices=(*silent, "oracle", "dial"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study = Study(load("pocket"), held_out("test")[: args.prompts], args.work, args.write)
    studies = args.only or (silent if asr.missing_asr() else (*silent, "oracle", "dial"))
    with figures():
        for name in studies:
            getattr(study, name)()


if __name__ == "__main__":
    main()
