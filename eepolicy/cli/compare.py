"""`eepolicy compare`: compare exit policies on held-out questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from eepolicy.cli.comparison import (
    MetricOptions,
    QuestionOptions,
    give_vocoder,
    has_compiler,
    interleaved,
    print_comparison,
    run_comparison,
    until_decided_rule,
    warnings_of,
)
from eepolicy.cli.options import (
    DECODING_PANEL,
    MODEL_PANEL,
    AcceptOption,
    CompileIfPossibleOption,
    DeviceOption,
    DtypeOption,
    FillOption,
    HeadsOption,
    JsonOption,
    ModelOption,
    PredictorOption,
    RestrictVocabOption,
    TemperatureOption,
    ThreadsOption,
    TopPOption,
    held_out_questions,
    load_model,
    sampling_options,
)
from eepolicy.cli.preset import MAX_NEW_TOKENS, Table2Run, check_preset
from eepolicy.cli.shared import app, print_json
from eepolicy.cli.workers import GpusOption, ModelSource, RayOption, WorkersOption, connected

QUESTION_PANEL = "Question options"
SCORING_PANEL = "Scoring options"

PoliciesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="policies, see 'eepolicy policies', each optionally with ', fill=FILL' and "
        "', accept=RULE'; by default the schedules of the paper, the branches of the model, and "
        "two calibrated adaptive policies"
    ),
]
PromptsOption = Annotated[
    int,
    typer.Option(
        help="number of questions; with --task, number per task",
        min=1,
        rich_help_panel=QUESTION_PANEL,
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="folder of the report")]
SplitOption = Annotated[
    str,
    typer.Option(
        "--set", help="held-out set of the questions: test or dev", rich_help_panel=QUESTION_PANEL
    ),
]
SeedsOption = Annotated[
    int,
    typer.Option(
        help="number of sampled replies per policy and question",
        min=1,
        rich_help_panel=DECODING_PANEL,
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="NAME=FILE of a task with other questions; the file is .jsonl, .json, .csv, .parquet, "
        "or hf:ID[:CONFIG[:SPLIT]] for a data set on the Hugging Face Hub",
        rich_help_panel=QUESTION_PANEL,
    ),
]
TtsOption = Annotated[
    str | None,
    typer.Option(
        help="command for speech synthesis of the questions, with {text} and {file}; the model "
        "needs an audio encoder",
        rich_help_panel=QUESTION_PANEL,
    ),
]
WrittenOption = Annotated[
    bool,
    typer.Option(
        "--written",
        help="ask the written questions of tasks that have sound too",
        rich_help_panel=QUESTION_PANEL,
    ),
]
LanguageOption = Annotated[
    str,
    typer.Option(
        help="language of the speech, such as zh; scripts without spaces are scored by characters",
        rich_help_panel=SCORING_PANEL,
    ),
]
JudgeUrlOption = Annotated[
    str | None,
    typer.Option(
        help="address of an OpenAI-compatible endpoint up to /v1, whose model scores the replies",
        rich_help_panel=SCORING_PANEL,
    ),
]
JudgeModelOption = Annotated[
    str, typer.Option(help="name of the judge model", rich_help_panel=SCORING_PANEL)
]
JudgeKeyOption = Annotated[
    str | None,
    typer.Option(
        help="key of the judge's endpoint",
        envvar="EEPOLICY_JUDGE_KEY",
        rich_help_panel=SCORING_PANEL,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(help="spark-table2: the policies of the paper's Table 2, on the tasks of --task"),
]
FitPromptsOption = Annotated[
    Path | None,
    typer.Option(help="file with a question per line, to fit the exit heads of the preset on"),
]
WhisperOption = Annotated[
    str | None,
    typer.Option(
        help="folder or name of a CTranslate2 Whisper model; tiny.en by default",
        rich_help_panel=SCORING_PANEL,
    ),
]
RaterOption = Annotated[
    str | None,
    typer.Option(
        "--mos",
        help="MOS predictor: distillmos, dnsmos or utmosv2; it rates the replies to 24 questions",
        rich_help_panel=SCORING_PANEL,
    ),
]
BatchOption = Annotated[
    int,
    typer.Option(
        help="number of questions that are decoded together", min=1, rich_help_panel=DECODING_PANEL
    ),
]
TimedOption = Annotated[
    int,
    typer.Option(
        help="number of questions that are timed, each reply alone",
        min=0,
        rich_help_panel=DECODING_PANEL,
    ),
]
VocoderOption = Annotated[
    str | None,  # a path on Windows would change the id of a codec
    typer.Option(
        help="checkpoint folder of the authors' vocoder, for the models of the paper and "
        "covo-audio-chat; or a folder, an id on the Hub or 'auto' for the codec that the model "
        "card names",
        rich_help_panel=MODEL_PANEL,
    ),
]
VoiceOption = Annotated[
    Path | None,
    typer.Option(
        help="sound file with the speaker's voice, for step-audio-2-mini and for models that "
        "imitate a voice; folder of a voice, for covo-audio-chat",
        rich_help_panel=MODEL_PANEL,
    ),
]
VoiceTextOption = Annotated[
    str | None,
    typer.Option(
        help="transcript of --voice, for models that imitate a voice", rich_help_panel=MODEL_PANEL
    ),
]
UntilDecidedOption = Annotated[
    bool,
    typer.Option(
        "--until-decided",
        help="add 50 questions at a time until every row is decided or no question is left; the "
        "p-values are corrected for the repeated tests",
        rich_help_panel=QUESTION_PANEL,
    ),
]
WerMarginOption = Annotated[
    float,
    typer.Option(
        help="points of WER that a policy may lose as 'not worse'", rich_help_panel=SCORING_PANEL
    ),
]
AccuracyMarginOption = Annotated[
    float,
    typer.Option(
        help="points of accuracy that a policy may lose as 'not worse'",
        rich_help_panel=SCORING_PANEL,
    ),
]
MosMarginOption = Annotated[
    float,
    typer.Option(help="MOS that a policy may lose as 'not worse'", rich_help_panel=SCORING_PANEL),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="with --preset: try every part on one reply, print hours and gigabytes, and stop",
    ),
]
AsrDeviceOption = Annotated[
    str,
    typer.Option(
        help="device of speech recognition: auto, cpu or cuda", rich_help_panel=SCORING_PANEL
    ),
]
CompareTokensOption = Annotated[
    int | None,
    typer.Option(
        help="maximum number of tokens per reply; 400 by default, 2048 with --preset",
        min=1,
        rich_help_panel=DECODING_PANEL,
    ),
]


@app.command()
def compare(
    policies: PoliciesArgument = None,
    prompts: PromptsOption = 100,
    out_folder: OutOption = Path("report"),
    split: SplitOption = "test",
    model: ModelOption = "pocket",
    heads: HeadsOption = None,
    predictor: PredictorOption = None,
    fill: FillOption = "catch_up",
    accept: AcceptOption = "all",
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seeds: SeedsOption = 1,
    tasks: TaskOption = None,
    tts: TtsOption = None,
    judge_url: JudgeUrlOption = None,
    judge_model: JudgeModelOption = "gpt-4o-mini",
    judge_key: JudgeKeyOption = None,
    preset: PresetOption = None,
    fit_prompts: FitPromptsOption = None,
    whisper: WhisperOption = None,
    rater: RaterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    vocoder: VocoderOption = None,
    voice: VoiceOption = None,
    voice_text: VoiceTextOption = None,
    max_new_tokens: CompareTokensOption = None,
    asr_device: AsrDeviceOption = "auto",
    language: LanguageOption = "en",
    written: WrittenOption = False,
    dry_run: DryRunOption = False,
    compiled: CompileIfPossibleOption = None,
    restrict_vocab: RestrictVocabOption = False,
    batch: BatchOption = 50,
    timed: TimedOption = 12,
    workers: WorkersOption = None,
    ray: RayOption = None,
    gpus: GpusOption = 0,
    until_decided: UntilDecidedOption = False,
    wer_margin: WerMarginOption = 2.0,
    accuracy_margin: AccuracyMarginOption = 5.0,
    mos_margin: MosMarginOption = 0.1,
    as_json: JsonOption = False,
) -> None:
    """Compare exit policies on held-out questions: verdicts, tables, figures, and a page.

    All questions are decoded in batches, while other processes transcribe the speech, and decode
    too if there are several. A sample is decoded again to measure time, one reply at a time.

    A stopped comparison continues when the command is run again. With more --prompts it adds the
    new questions.

    Example: eepolicy compare spark:triple@14 "spark:triple@14, fill=mask" --out my-report

    Example: eepolicy compare --preset spark-table2 --model zai-org/glm-4-voice-9b --dtype bfloat16
    --task triviaqa=triviaqa.jsonl --fit-prompts dialogues.txt --prompts 1000
    """
    from eepolicy.analysis.evaluation.config import RunConfig
    from eepolicy.analysis.evaluation.records import RunFolder
    from eepolicy.analysis.evaluation.rows import parse_row
    from eepolicy.analysis.evaluation.verdict import Margins
    from eepolicy.decode.config import EarlyExitConfig
    from eepolicy.workers import WorkerConfig

    if preset is not None:
        rater = rater or "distillmos"  # a measure of the paper
    metrics = MetricOptions(whisper, rater, judge_url, judge_model, judge_key, asr_device, language)
    notes = warnings_of(metrics, compiled)
    # compiling pays for itself in the hours of the preset on a GPU, and not in a short run
    on_gpu = preset is not None and device.startswith("cuda") and has_compiler()
    decoding = EarlyExitConfig(
        fill=fill,
        accept=accept,
        restrict_vocab=restrict_vocab,
        compile=on_gpu if compiled is None else compiled,
    )
    sampling = sampling_options(temperature, top_p)
    list(map(parse_row, policies or ()))  # checks them before anything is loaded
    is_default = replace(decoding, compile=False) == EarlyExitConfig()
    is_default = is_default and not sampling and seeds == 1 and not until_decided
    check_preset(preset, policies, is_default, {"--dry-run": dry_run, "--fit-prompts": fit_prompts})
    number = None if until_decided else prompts  # --prompts is then the size of the first look
    own = QuestionOptions(split, number, tuple(tasks or ()), tts, written).own(out_folder)
    own = interleaved(own) if until_decided else own
    spoken = load_model(model, dtype, device, threads, heads, predictor)
    give_vocoder(spoken, vocoder, voice, voice_text)
    worker_config = connected(WorkerConfig(workers, ray, gpus))
    source = ModelSource(model, dtype, device, heads, predictor, spoken.voice)
    load = source.for_workers(spoken, worker_config, least=2)  # a single one is busy with speech
    is_own = bool(own) or preset is not None
    questions = (
        own if is_own else held_out_questions(model, split, None if until_decided else prompts)
    )
    config = RunConfig(
        policies=policies,
        decoding=decoding,
        sampling=sampling,
        seeds=seeds,
        max_new_tokens=max_new_tokens or (400 if preset is None else MAX_NEW_TOKENS),
        calibration=() if is_own else held_out_questions(model, "dev"),
        batch=batch,
        timed=timed,
        compile_timed=has_compiler() if compiled is None else compiled,
        workers=worker_config,
        load=load,
        margins=Margins(wer_margin, accuracy_margin, mos_margin),
        looks=until_decided_rule(prompts, len(questions)) if until_decided else None,
    )
    if preset is not None:
        job = Table2Run(spoken, questions, out_folder, metrics, fit_prompts, config, notes, source)
        results = job.run(dry_run)
    else:
        results = run_comparison(spoken, questions, RunFolder(out_folder), config, metrics, notes)
    if as_json:
        print_json(results)
    elif results and preset is None:
        print_comparison(results, out_folder / "index.html")
