"""Every setting of every stage: one dataclass field is one option and one TOML key.

Defaults stand here, a run's own in `run_config.py`, and nowhere else. `options.py` turns the fields into command-line
options, `recipe.py` reads them from TOML; both show the help written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from score_cli.settings import option
from score_cli.tasks.loss_mask import read_loss_on
from score_cli.tasks.pay import Pay
from score_cli.tasks.script import Script

EngineName = Literal["auto", "transformers", "vllm"]
Baseline = Literal["leave-one-out", "conditional"]
KlForm = Literal["sampled", "full"]
Architecture = Literal["gpt2", "llama", "qwen2"]
Device = Literal["auto", "cpu", "cuda"]
RayWeights = Literal["store", "broadcast"]
Precision = Literal["auto", "bfloat16"]
SftMethod = Literal["star", "star-plus", "pair-sft", "pair-sft-plus", "right", "right-and-true", "search"]
OptimizerName = Literal["adam", "adam8bit"]
Stored = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["constant", "linear", "cosine"]
SignalKind = Literal["confidence", "judge", "revision"]
ConfidenceForm = Literal["mean", "product"]
Layout = Literal["auto", "columns", "verl", "trl", "competition"]

# Methods of supervised rounds that keep dialogues of any turns; the others make examples of two solves.
DIALOGUE_METHODS: tuple[SftMethod, ...] = ("right", "right-and-true", "search")

Overrides = Sequence[Sequence[str]]  # (task, field of its prompts, text)


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where a stage that runs a model does so."""

    device: Device = option("auto", "Where the model runs; auto takes CUDA where there is a GPU.")
    threads: int = option(
        1,
        "CPU threads of torch; more pay for a large model on cores without other work. Another number may change the "
        "last bits of a result.",
        least=1,
    )


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(DeviceConfig):
    """Where a stage runs a policy, and in what arithmetic; the stages of a chain need the same."""

    precision: Precision = option(
        "auto",
        "What layers multiply in: auto takes bfloat16 on a GPU and float32 on the CPU; bfloat16 takes it on the CPU "
        "too, which is quicker where the CPU multiplies it by itself (AMX). Weights and logits stay float32.",
    )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(PolicyConfig):
    """What every stage that samples is told: how many traces of which kind, and how much of the machine they take."""

    max_model_len: int | None = option(
        None,
        "Longest trace, in tokens; the model's own context if left out. vLLM must have memory for at least one such.",
        least=1,
    )
    gpu_memory_utilization: float = option(
        0.5, "Share of a GPU's memory that vLLM takes; a trainer on the same GPU needs the rest.", above=0, most=1
    )
    tensor_parallel_size: int = option(
        1,
        "GPUs that vLLM spreads one copy of the model over. For a copy a GPU, give each its `score sample --shard`.",
        least=1,
    )
    ray: str | None = option(
        None,
        "Sample in actors of a Ray cluster, each with an engine of its own: local starts one on this machine, auto "
        "joins the one that is there, or the address of one. The traces are the same.",
    )
    ray_samplers: int | None = option(
        None, "Actors on the Ray cluster; as many as have room, by GPUs or by threads, if left out.", least=1
    )
    ray_weights: RayWeights = option(
        "store",
        "How a changed policy reaches engines of vLLM in Ray's actors: store takes Ray's object store, broadcast sends "
        "it to all at once by vLLM's weight transfer (NCCL on GPUs, gloo on the CPU). The traces are the same.",
    )
    samples: int = option(8, "Traces a problem.", least=1)
    attempts: int = option(2, "Attempts a trace.", least=1, most=127)
    temperature: float = option(
        1.0,
        "Divides the logits; 0 takes the likeliest token. Train on traces at 1. An evaluation adds greedy traces.",
        least=0,
    )
    top_p: float = option(
        1.0, "Sample from the fewest likeliest tokens that reach this share; 1 for traces to train on.", above=0, most=1
    )
    top_k: int = option(0, "Sample from this many likeliest tokens; 0, all of them, for traces to train on.", least=0)
    max_tokens: int | None = option(
        None,
        "Most tokens of one attempt; if left out, what the model's context has room for, at most 1024.",
        least=1,
    )
    seed: int = option(0, "Seed of the problems drawn and of every token sampled.", least=0, most=2**63 - 1)
    correction: str | None = option(None, "Words that ask for a correction, in place of the task's own.")
    prompts: Overrides = ()  # from a recipe's tables [prompts.TASK]; no option of the command line
    script: Script | None = None  # from a recipe's table [script]; `attempts` is then its most turns
    engine: EngineName = option(
        "auto", "What runs the model; auto takes vllm where it is installed and there is a GPU, else transformers."
    )
    batch_size: int = option(64, "Traces decoded at the same time (transformers engine).", least=1)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """`score data`: which problems to write."""

    split: str | None = option(None, "Part of the data set; its first if left out. The parts share no problem.")
    limit: int | None = option(None, "Keep only the first N problems; all of them if left out.", least=1)
    levels: str | None = option(
        None, "stories: only problems of these levels of 1 to 4, as 1,2; all of them if left out.", counts=True
    )
    shots: int | None = option(
        None, "Solved tasks that an MBPP prompt shows, 0 to 3; 3 if left out, 0 for MBPP+.", least=0, most=3
    )
    shown_tests: int | None = option(
        None,
        "Tests that an MBPP prompt shows of those that are graded, 0 to 3; the paper's 3, all of them, if left out. "
        "Fewer leave less to be hard-coded.",
        least=0,
        most=3,
    )
    check: bool = option(True, "Verify each problem's own answer first, and list those that do not pass.")
    size: int = option(2000, "reasoning-gym: how many problems to make, all different.", least=1)
    seed: int = option(0, "reasoning-gym: other problems for another seed.", least=0)
    dataset_config: str | None = option(
        None, "reasoning-gym: configuration of the data set as JSON, which --config takes too."
    )
    task: str | None = option(None, "custom: whose prompts and grader apply; math where there are answers.")
    layout: Layout = option(
        "auto",
        "custom: columns as verl or trl train on them, as data sets of competitions have them, or as named; auto goes "
        "by the first row.",
    )
    hold_out: float | None = option(
        None,
        "custom: share of questions that validation and test keep each; train has the rest.",
        above=0,
        most=0.4,
    )
    id_column: str = option("problem_id", "custom: column of the problem's id; made up where absent.")
    question_column: str = option("question", "custom: column of the question.")
    answer_column: str = option("answer", "custom: column of the gold answer.")
    tests_column: str = option("tests", "custom: column of the tests of a program.")
    entry_point_column: str = option("entry_point", "custom: column of the function's name.")
    setup_column: str = option("setup", "custom: column of code run before the tests.")
    level_column: str = option("level", "custom: column of the problem's level.")
    subject_column: str = option("subject", "custom: column of the problem's subject.")
    reference_column: str = option("reference", "custom: column of a right response, for the check alone.")


@dataclass(frozen=True, kw_only=True)
class DialoguesConfig:
    """`score dialogues`: what an imperfect author writes for a supervised start."""

    size: int = option(3000, "How many dialogues; the problems come again and again.", least=1)
    attempts: int = option(2, "Attempts of a dialogue; a recipe's [script] says itself what the turns are.", least=1)
    seed: int = option(0, "Seed of the problems' order and of what the author says.", least=0, most=2**63 - 1)
    skilled: float = option(0.35, "Share of revisions made with skill; the others are blind.", least=0, most=1)
    true_claims: float = option(0.67, "Share of verdicts that tell what the solve is.", least=0, most=1)
    script: Script | None = None  # from a recipe's table [script]


@dataclass(frozen=True, kw_only=True)
class BaseConfig(DeviceConfig):
    """`score base`: the tiny policy of the built-in task, trained from scratch on imperfect transcripts."""

    seed: int = option(0, "Seed of the initial weights and of the transcripts.", least=0, most=2**63 - 1)
    architecture: Architecture = option("gpt2", "Model family; gpt2 (learned positions) learns the task best.")
    layers: int = option(2, "Transformer layers.", least=1)
    width: int = option(64, "Hidden size.", least=1)
    heads: int = option(4, "Attention heads.", least=1)
    steps: int = option(1000, "Training steps.", least=1)
    batch_size: int = option(128, "Transcripts a step.", least=1)
    learning_rate: float = option(
        3e-3, "AdamW's step size for embeddings, biases and norms; falls to 0 in a line.", above=0, most=1
    )
    muon_learning_rate: float = option(
        0.02, "Muon's step size for the layers' matrices; falls to 0 in a line.", above=0, most=1
    )
    warmup_steps: int = option(10, "Steps over which the learning rates rise to their peak.", least=0)
    careful_share: float = option(
        0.7,
        "Share of the steps, from the first on, with a careful author, who never rounds up and whose wrong first "
        "guesses are read but not learned; the other author's ways come after.",
        least=0,
        most=1,
    )
    attempts: int = option(
        2, "Attempts of a transcript. Positions beyond them are never trained, so later attempts are noise.", least=2
    )
    latent_share: float = option(
        0.35,
        "Share of transcripts with the latent skill: competent revision, asked for in other words.",
        least=0,
        most=1,
    )
    follows_script: bool = option(
        True,
        "Let the transcripts follow a recipe's [script]. Off, its words are tokens that the base has never read, and "
        "run.start can teach them.",
    )
    script: Script | None = None  # from a recipe's table [script]: the transcripts then follow it


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplingConfig):
    """`score sample`: problems to traces."""

    problems_per_iteration: int | None = option(
        None,
        "Draw this many problems, going through shuffled epochs by iteration; all problems if left out.",
        least=1,
    )
    iteration: int | None = option(
        None,
        "Which iteration's problems and random numbers to draw; if left out, the updates of the checkpoint.",
        least=0,
    )
    offline_share: float | None = option(
        None,
        "With --first-attempts: share of each problem's samples whose first attempt is given, to the nearest whole "
        "number; the others sample their own. All of them if left out.",
        least=0,
        most=1,
    )
    chunk_problems: int = option(
        64, "Problems a row group; chunks do not share state, so they can be redone alone.", least=1
    )
    shard: str | None = option(
        None, "Sample only the I-th of N slices of the chunks, as I/N such as 1/3; `score merge` joins their files."
    )


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """`score verify`: traces to rewards."""

    workers: int | None = option(None, "Grading processes; one a CPU core if left out.", least=1)
    ray: str | None = option(
        None,
        "Grade in actors of a Ray cluster, each with --workers processes: local, auto or an address, as for sampling. "
        "The verdicts are the same.",
    )
    ray_graders: int | None = option(None, "Actors on the Ray cluster; one a machine if left out.", least=1)
    math_timeout_seconds: float = option(2.0, "Longest that one answer's comparison may take.", above=0)
    refuse_restatements: bool = option(
        True, "Call an answer to mathematics that only stands in the question `unfinished`, which scores 0."
    )
    require_finished: bool = option(
        True, "Call an answer that leaves more to compute than the gold answer does `unfinished`, which scores 0."
    )
    program_timeout_seconds: float = option(5.0, "Longest that one program may take, tests included.", above=0)
    program_memory_mb: int = option(512, "Memory of one program.", least=64)
    allow_unsandboxed: bool = option(False, "Run programs without a sandbox where this machine has none.")
    grader: str | None = option(
        None,
        "Grade by a function of your own, grade(problem, response): FILE.py:FUNCTION, package.module:function, or a "
        "name that a package registers under score.graders. Left out, each task has its own grader.",
    )
    grader_timeout_seconds: float = option(10.0, "Longest that one call of --grader may take.", above=0)
    grader_memory_mb: int = option(4096, "Memory of one process of --grader; 0 for no limit.", least=0)
    correct_at: float = option(1.0, "Reward of --grader from which an attempt counts as correct.", above=0, most=1)
    unscored_limit: float = option(
        0.05, "Share of attempts left unscored above which the stage fails.", least=0, most=1
    )
    script: Script | None = None  # from a recipe's table [script]: how turns that are no solves are graded


@dataclass(frozen=True, kw_only=True)
class SignalConfig(PolicyConfig):
    """`score signal`: traces to what a frozen policy says of them, for training alone to be paid by."""

    kind: SignalKind = option(
        "confidence",
        "confidence: the probability that the policy gives an answer's own tokens. judge: that it calls a solve right. "
        "revision: of critiques, the exact reward of what the policy made of them.",
    )
    by: str | None = option(
        None, "Checkpoint, or Hugging Face model id, whose policy makes the signal; in a run the base if left out."
    )
    over: ConfidenceForm = option("mean", "confidence: mean or product of the probabilities of the answer's tokens.")
    ask: str = option(
        "Is this answer correct? Say right or wrong.",
        "judge: what it is asked after a solve. {answer} stands for the gold answer: the judge then sees it.",
    )
    claim: str = option("right|wrong", "judge: its word for a correct solve, a bar, its word for an incorrect one.")
    accept_at: float = option(
        0.4, "judge: probability of the first word, out of the two, from which a solve is accepted.", least=0, most=1
    )
    accepted: float = option(1.0, "judge: what a solve is worth that it accepts.")
    rejected: float = option(0.1, "judge: what another is worth. A solve without an answer is worth 0.")
    boxed: bool = option(
        True, "judge: an answer stands in a box; a solve without one has none. Off, every finished solve is judged."
    )
    temperature: float = option(
        1.0,
        "revision, in a run: of the revisions. 0 takes the likeliest, which is another objective than the chance that "
        "a revision is right.",
        least=0,
    )
    scoring_tokens: int = option(16384, "Padded tokens a pass; changes memory and speed.", least=1)
    prompts: Overrides = ()  # from a recipe's tables [prompts.TASK]: the problems' words for the judge


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(PolicyConfig):
    """What every stage that trains is told of its optimiser."""

    optimizer: OptimizerName = option(
        "adam",
        "adam: moments of 32 bits, 8 bytes a parameter. adam8bit: of 8 bits, 2 bytes a parameter, by bitsandbytes.",
    )
    learning_rate: float = option(5e-6, "Adam's step size.", above=0, most=1)
    adam_beta1: float = option(0.9, "Adam's decay of the first moment.", least=0, most=0.9999)
    adam_beta2: float = option(0.95, "Adam's decay of the second moment.", least=0, most=0.99999)
    max_grad_norm: float = option(1.0, "Gradient norm above which the gradient is scaled down to it.", above=0)
    micro_batch_tokens: int = option(
        4096, "Padded tokens a forward pass; changes memory and speed, not the gradient.", least=1
    )
    gradient_checkpointing: bool = option(
        False,
        "Keep each layer's input alone for the backward pass, which computes the rest again: a third more computing, a "
        "fraction of the memory.",
    )
    scoring_tokens: int = option(
        16384,
        "Padded tokens a pass without gradient, which holds much less: the reference's logprobs, and another engine's "
        "tokens. Changes memory and speed.",
        least=1,
    )
    lora_rank: int = option(
        0,
        "Rank of a LoRA adapter, the only thing then trained. At 0 all weights are, or the adapter that --model has.",
        least=0,
    )
    lora_alpha: float = option(32.0, "The adapter's output is multiplied with this over its rank.", above=0)
    lora_targets: str = option(
        "all-linear", "Linear layers with an adapter, as q_proj,v_proj; all-linear means all but the output head."
    )
    lora_layers: int = option(
        0, "Only so many layers have an adapter, the last ones: nothing goes back through those below. 0: all.", least=0
    )
    lora_seed: int = option(0, "Seed of a new adapter's weights.", least=0, most=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A recipe's table [lora]: the `lora_` settings of every stage that trains and has none of its own."""

    rank: int | None = None
    alpha: float | None = None
    targets: str | None = None
    layers: int | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class UpdateConfig(OptimizerConfig):
    """What the two training stages share: one optimiser step on one batch of traces."""

    warmup_updates: int = option(
        0, "Updates of the stage over which the learning rate rises to --learning-rate in a line.", least=0
    )
    schedule: Schedule = option(
        "constant", "How the learning rate goes on after that: constant, or towards 0 in a line or half a cosine."
    )
    schedule_updates: int | None = option(
        None,
        "Updates of the stage, warm-up included, at whose end a schedule that falls reaches 0; the stage's iterations "
        "in a run if left out. Updates are counted by Adam's moments, from the stage's first.",
        least=1,
    )
    beta1: float = option(0.01, "KL coefficient of every attempt, per nat.", least=0)
    discount: float = option(
        0.0,
        "How much of the later attempts' shaped rewards an attempt is credited with. The paper's 0 credits each "
        "attempt with its own; above 0, alpha = 10 pays the first attempt for being wrong.",
        least=0,
        most=1,
    )
    baseline: Baseline = option(
        "conditional",
        "What is subtracted from an attempt's return: the mean over the problem's other samples, or over those of "
        "them whose previous attempt scored the same (the rest of the batch where there are none).",
    )
    kl: KlForm = option(
        "sampled",
        "sampled: log-ratio of the sampled tokens, in the reward (unbiased), each token charged with its own and those "
        "of the attempt's later tokens. full: exact divergence over the "
        "vocabulary at every token, in the loss (less noise; ignores how a token changes later divergence).",
    )
    importance_sampling_cap: float = option(
        2.0,
        "Where traces come from another engine: cap of the trainer-to-sampler probability ratio of a token.",
        above=0,
    )
    logprob_tolerance: float | None = option(
        None,
        "Largest mean gap, in nats a token, between trainer and sampler logprobs, above which the update is refused; "
        "if left out, 0.001 in float32, and in bfloat16 0.15 times the mean entropy (at most 1 nat) over the "
        "temperature, at least 0.075. From 0.05 on an update is warned of.",
        above=0,
    )
    log_grad_norm_by_attempt: bool = option(
        False, "Log the gradient norm of each attempt's loss by itself; costs a backward pass and a copy an attempt."
    )
    temperature: float = option(1.0, "Temperature of traces without a footer; others say their own.", least=0)


@dataclass(frozen=True, kw_only=True)
class Stage1Config(UpdateConfig):
    """`score train-stage1`: raise the last attempt's reward, pin the earlier attempts to the reference (Eq. 3)."""

    beta2: float = option(0.1, "Further KL coefficient of every attempt before the last, per nat.", least=0)


@dataclass(frozen=True, kw_only=True)
class Stage2Config(UpdateConfig):
    """`score train-stage2`: raise all attempts' rewards, with a bonus for progress (Eq. 4)."""

    alpha: float = option(
        10.0, "Bonus: alpha times (this attempt's reward minus the one before), from attempt 2 on.", least=0
    )
    stagnation_penalty: float = option(
        0.0, "Taken from an attempt that is wrong after a wrong one, from attempt 2 on; SCoRe has none.", least=0
    )
    pay: Pay | None = None  # from a recipe's table [pay], in place of alpha and stagnation_penalty


@dataclass(frozen=True, kw_only=True)
class SftConfig(OptimizerConfig):
    """`score train-sft`: one supervised round, from a policy's own traces or from given dialogues."""

    method: SftMethod = option(
        "star",
        "star: traces wrong first and right second. pair-sft: each wrong first attempt with a random right response "
        "to its problem. The plus forms add right first attempts. Of a script's dialogues, right: those whose last "
        "solve is right; right-and-true: and every verdict true; search: each up to its first right solve.",
    )
    loss_on: str = option(
        "second",
        "Which turns' tokens are learned: second or both, of two solves; of any dialogue all, a role, or first- or "
        "last- and a role, with commas between, such as verify,last-solve.",
    )
    epochs: int = option(1, "Times that every example is learned from.", least=1)
    batch_size: int = option(64, "Examples an optimiser step; the loss is the mean over their tokens.", least=1)
    learning_rate: float = option(1e-5, "AdamW's step size.", above=0, most=1)
    weight_decay: float = option(0.0, "AdamW's weight decay; at 0 it is Adam.", least=0, most=1)
    seed: int = option(0, "Seed of the responses paired and of the order of examples.", least=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        read_loss_on(self.loss_on)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(SamplingConfig):
    """`score eval`: accuracy at each attempt, sampled and greedy; all policies share their random numbers."""

    pass_at: str | None = option(
        None, "pass@k at each attempt of the sampled traces, as k,k,...; at most --samples.", counts=True
    )
    votes: str | None = option(
        None,
        "Majority votes, as K,K,...: 2K first attempts against K attempts each corrected once. "
        "Draws 2K traces a problem besides, for the largest K. Not for programs, whose text is no answer to vote on.",
        counts=True,
    )
    vote_temperature: float = option(0.7, "Temperature of the traces that are voted on.", above=0)
    calibration: bool = option(
        False,
        "Measure how far the probabilities that a policy gives its boxed answers' tokens are from the share that is "
        "right.",
    )


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """`score report`: what of a run goes on its page."""

    traces_per_policy: int = option(200, "Most traces on the page of each policy and decoding.", least=0)
    traces_per_update: int = option(8, "Most traces on the page of each update that is shown.", least=0)
    updates_shown: int = option(
        100,
        "Most updates with traces on the page, spread evenly over the training from its first to its last.",
        least=0,
    )
