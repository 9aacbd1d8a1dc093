"""Where the names of the first edition are now, for plug-ins that still import the old ones.

The table is long because it is complete: every public name that has another module or another name
in this edition. CHANGELOG.md prints the same table.
"""

import ast
import importlib.util
from collections.abc import Iterator

CHANGE_IMPORTS = "change the import (CHANGELOG.md lists all)"


def moved_imports(source: str | bytes) -> str:
    """What a plug-in's source uses of the first edition, and where that is now.

    Returns one phrase, as "harness.config.option, which is now harness.base.settings.option", or
    an empty text if all is of this edition. The source is read, not executed; a source that is no
    Python is left to whoever executes it.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    phrases = [phrase for name in _names_used(tree) if (phrase := _where_now(name))]
    return ", and ".join(dict.fromkeys(phrases))


def _names_used(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what the source imports, and of attributes of modules that it imports."""
    imported: dict[str, str] = {}  # {name in the source: dotted name of what it stands for}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                imported[local] = alias.name if alias.asname else local
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, dot, attributes = _dotted(node).partition(".")
            if root in imported:
                yield imported[root] + dot + attributes


def _dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression that is such a chain; of others what cannot be a module's name."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _where_now(dotted: str) -> str:
    """Where a name or module of the first edition is now; empty for one of this edition."""
    module, _, name = dotted.rpartition(".")
    if new := MOVED.get(module, {}).get(name):
        # A module of this edition may have the name that a function had
        return "" if new.startswith(f"{dotted}.") else f"{dotted}, which is now {new}"
    for old in (dotted, module):
        if old in MOVED and not _exists(old):
            *others, last = sorted({new.rpartition(".")[0] for new in MOVED[old].values()})
            if not others:
                return f"{old}, which is now {last}"
            return f"{old}, whose names are now in {', '.join(others)} and {last}"
    return ""


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor does its package
        return False


# {module of the first edition: {name in it: where it is now}}
MOVED: dict[str, dict[str, str]] = {
    "benchmarks.graders": {
        "GRADERS": "harness.skills.graders.GRADERS",
        "answer_tag": "harness.skills.graders.answer_tag",
        "contains": "harness.skills.graders.contains",
        "exact_match": "harness.skills.graders.exact_match",
        "normalise": "harness.skills.graders.normalise",
        "normalised_match": "harness.skills.graders.normalised_match",
        "token_f1": "harness.skills.graders.token_f1",
    },
    "benchmarks.judges": {
        "JUDGES": "harness.skills.rubrics.JUDGES",
        "KNOWLEDGE": "harness.skills.rubrics.KNOWLEDGE",
        "MEDICAL": "harness.skills.rubrics.MEDICAL",
        "Rubric": "harness.skills.rubrics.Rubric",
    },
    "harness.config": {
        "BEYOND": "harness.base.settings.BEYOND",
        "build": "harness.base.settings.build",
        "check": "harness.base.settings.check",
        "option": "harness.base.settings.option",
    },
    "harness.console": {
        "Progress": "harness.base.console.Progress",
        "Rate": "harness.base.console.Rate",
        "clock": "harness.base.console.clock",
    },
    "harness.distillation": {
        "DistillationConfig": "harness.learning.distillation.DistillationConfig",
        "TeacherSamples": "harness.learning.teacher_samples.TeacherSamples",
        "check_on_policy": "harness.learning.checks.check_on_policy",
        "check_teacher": "harness.learning.checks.check_teacher",
        "distil": "harness.learning.distillation.distil",
        "divergence": "harness.learning.distillation.divergence",
        "on_support": "harness.learning.distillation.on_support",
        "sampled_divergence": "harness.learning.distillation.sampled_divergence",
        "token_losses": "harness.learning.distillation.token_losses",
    },
    "harness.endpoint": {
        "Endpoint": "harness.evaluation.endpoint.Endpoint",
        "EndpointConfig": "harness.evaluation.endpoint.EndpointConfig",
        "EndpointDown": "harness.evaluation.endpoint.EndpointDown",
        "LARGEST_BODY": "harness.evaluation.endpoint.LARGEST_BODY",
        "LONGEST_WAIT": "harness.evaluation.endpoint.LONGEST_WAIT",
        "Refused": "harness.evaluation.endpoint.Refused",
        "Reply": "harness.evaluation.endpoint.Reply",
        "endpoint_config": "harness.evaluation.endpoint.endpoint_config",
        "without_secrets": "harness.evaluation.endpoint.without_secrets",
    },
    "harness.errors": {
        "Parser": "harness.base.errors.Parser",
        "UserError": "harness.base.errors.UserError",
        "did_you_mean": "harness.base.errors.did_you_mean",
        "reported": "harness.base.errors.reported",
    },
    "harness.evaluation": {
        "Evaluator": "harness.evaluation.evaluator.Evaluator",
        "protocol_hash": "harness.evaluation.protocol.protocol_hash",
        "sample_of": "harness.evaluation.skills.sample_of",
        "scorer_hash": "harness.evaluation.protocol.scorer_hash",
        "sequence_kl": "harness.evaluation.kl.sequence_kl",
    },
    "harness.gguf_tokenizer": {
        "BYTE": "harness.models.gguf_tokenizer.BYTE",
        "CONTROL": "harness.models.gguf_tokenizer.CONTROL",
        "SPACE": "harness.models.gguf_tokenizer.SPACE",
        "USER": "harness.models.gguf_tokenizer.USER",
        "build_tokenizer": "harness.models.gguf_tokenizer.build_tokenizer",
        "read_tokenizer": "harness.models.gguf_tokenizer.read_tokenizer",
    },
    "harness.grade": {
        "grade": "harness.evaluation.completions_file.grade",
    },
    "harness.judge": {
        "SETTINGS": "harness.evaluation.judge.SETTINGS",
        "judge": "harness.evaluation.judge.judge",
        "judge_folder": "harness.evaluation.judge.judge_folder",
        "judge_runs": "harness.evaluation.judge.judge_runs",
        "judge_stage": "harness.evaluation.judge.judge_stage",
        "judged_protocol": "harness.evaluation.judge.judged_protocol",
        "open_endpoint": "harness.evaluation.judge.open_endpoint",
        "prompt_for": "harness.evaluation.judge.prompt_for",
        "verdict_of": "harness.evaluation.judge.verdict_of",
    },
    "harness.method": {
        "Method": "harness.learning.method.Method",
        "get_method": "harness.learning.method.get_method",
    },
    "harness.metrics": {
        "OTHER_UNITS": "harness.base.metrics.OTHER_UNITS",
        "average_accuracy": "harness.base.metrics.average_accuracy",
        "backward_transfer": "harness.base.metrics.backward_transfer",
        "bootstrap_means": "harness.base.metrics.bootstrap_means",
        "forgetting": "harness.base.metrics.forgetting",
        "forward_transfer": "harness.base.metrics.forward_transfer",
        "in_unit_interval": "harness.base.metrics.in_unit_interval",
        "learning_accuracy": "harness.base.metrics.learning_accuracy",
        "mean_and_stderr": "harness.base.metrics.mean_and_stderr",
        "normalised": "harness.base.metrics.normalised",
        "own_stage_accuracy": "harness.base.metrics.own_stage_accuracy",
        "own_stage_gain": "harness.base.metrics.own_stage_gain",
        "pass_at_k": "harness.base.metrics.pass_at_k",
        "percentile_interval": "harness.base.metrics.percentile_interval",
        "ratio_and_stderr": "harness.base.metrics.ratio_and_stderr",
        "retention_delta": "harness.base.metrics.retention_delta",
        "score_interval": "harness.base.metrics.score_interval",
        "select": "harness.base.metrics.select",
        "t_interval": "harness.base.metrics.t_interval",
        "t_quantile": "harness.base.metrics.t_quantile",
        "wilson_interval": "harness.base.metrics.wilson_interval",
    },
    "harness.models": {
        "BASE_TEMPLATE": "harness.models.embedded.BASE_TEMPLATE",
        "EMBEDDED": "harness.models.embedded.EMBEDDED",
        "EMBEDDED_MODELS": "harness.models.embedded.EMBEDDED_MODELS",
        "Embedded": "harness.models.embedded.Embedded",
        "PAD": "harness.models.forward.PAD",
        "cache_folder": "harness.models.embedded.cache_folder",
        "can_share_prompts": "harness.models.forward.can_share_prompts",
        "chat_tokens": "harness.models.chat.chat_tokens",
        "check_device": "harness.models.load.check_device",
        "check_name": "harness.models.load.check_name",
        "closed_thought": "harness.models.demonstration.Demonstrations",
        "embedded_checkpoint": "harness.models.embedded.embedded_checkpoint",
        "fingerprint": "harness.models.checkpoint.model_fingerprint",
        "head": "harness.models.forward.output_head",
        "hidden": "harness.models.forward.hidden_states",
        "is_local": "harness.models.load.is_local",
        "keep_freed_memory": "harness.models.memory.keep_freed_memory",
        "load": "harness.models.load.load_model",
        "load_tokenizer": "harness.models.load.load_tokenizer",
        "package_file": "harness.models.embedded.package_file",
        "pad_right": "harness.models.forward.pad_right",
        "resolve_device": "harness.models.load.resolve_device",
        "resolve_dtype": "harness.models.load.resolve_dtype",
        "return_freed_memory": "harness.models.memory.return_freed_memory",
        "save": "harness.models.checkpoint.save_checkpoint",
        "sha256": "harness.models.embedded.sha256",
        "stop_tokens": "harness.models.chat.stop_tokens",
    },
    "harness.order": {
        "Budget": "harness.runs.schema.Budget",
        "Checkpoints": "harness.runs.schema.Checkpoints",
        "ENGINES": "harness.sampling.settings.ENGINES",
        "Evaluate": "harness.evaluation.settings.Evaluate",
        "KL": "harness.evaluation.settings.KL",
        "MethodSpec": "harness.runs.methods.MethodSpec",
        "ModelSpec": "harness.runs.schema.ModelSpec",
        "Order": "harness.runs.order.Order",
        "PassAtK": "harness.evaluation.settings.PassAtK",
        "Rollout": "harness.sampling.settings.Rollout",
        "Run": "harness.runs.order.Run",
        "SERIES": "harness.runs.sections.SERIES",
        "Schema": "harness.runs.schema.Schema",
        "SkillSpec": "harness.runs.schema.SkillSpec",
        "read_order": "harness.runs.reading.read_order",
    },
    "harness.plan": {
        "Machine": "harness.runs.cost.Machine",
        "Memory": "harness.runs.cost.Memory",
        "Outlook": "harness.learning.outlook.Outlook",
        "Work": "harness.learning.outlook.Work",
        "activations": "harness.runs.cost.activations",
        "plan": "harness.runs.plan.plan",
    },
    "harness.records": {
        "LATER": "harness.results.formats.LATER",
        "LONGEST_NAME": "harness.base.places.LONGEST_NAME",
        "ORACLE": "harness.results.formats.ORACLE",
        "PAUSE": "harness.results.writer.PAUSE",
        "Results": "harness.results.writer.ResultsWriter",
        "SMALL": "harness.results.writer.SMALL",
        "VERSION": "harness.results.formats.VERSION",
        "check_folder": "harness.base.places.check_folder",
        "locked": "harness.base.files.locked",
        "read_json": "harness.base.files.read_json",
        "selection": "harness.results.selection.grid_selection",
        "write_json": "harness.base.files.write_json",
        "write_jsonl": "harness.base.files.write_jsonl",
        "write_text": "harness.base.files.write_text",
    },
    "harness.report": {
        "made_beside": "harness.report.build.made_beside",
        "write_report": "harness.report.build.write_report",
    },
    "harness.report.data": {
        "ALIKE": "harness.report.estimates.IntervalSource",
        "APART": "harness.report.estimates.IntervalSource",
        "BOOTSTRAP": "harness.report.estimates.IntervalSource",
        "CHUNK": "harness.results.reader.CHUNK",
        "COLUMNS": "harness.results.reader.COLUMNS",
        "ERRORS": "harness.report.estimates.IntervalSource",
        "EVALUATION": "harness.results.formats.EVALUATION",
        "Estimate": "harness.report.estimates.Estimate",
        "HEAD": "harness.results.formats.HEAD",
        "HOW": "harness.report.estimates.HOW",
        "MOST_FILES": "harness.report.entries.MOST_FILES",
        "NAMES": "harness.results.formats.NAMES",
        "REMEDY": "harness.results.formats.REMEDY",
        "RUN": "harness.results.formats.RUN",
        "Results": "harness.report.data.ReportData",
        "SEEDS": "harness.report.estimates.IntervalSource",
        "SELECTION": "harness.results.formats.SELECTION",
        "STAGE": "harness.results.formats.STAGE",
        "Series": "harness.results.pooling.Series",
        "TEXTS": "harness.results.reader.TEXTS",
        "WILSON": "harness.report.estimates.IntervalSource",
        "distinct": "harness.results.pooling.distinct",
        "read_object": "harness.results.formats.read_object",
        "read_records": "harness.results.reader.read_records",
    },
    "harness.report.experiments": {
        "CONTEXTS": "benchmarks.paper.measured.CONTEXTS",
        "difference": "benchmarks.paper.estimates.difference",
        "estimate": "benchmarks.paper.estimates.estimate",
        "generations": "benchmarks.paper.measured.generations",
        "in_context": "benchmarks.paper.measured.in_context",
        "knowledge": "benchmarks.paper.measured.knowledge",
        "model_name": "benchmarks.paper.measured.model_name",
        "model_size": "benchmarks.paper.measured.model_size",
        "pass_at_k": "benchmarks.paper.measured.pass_at_k",
        "reasoning": "benchmarks.paper.measured.reasoning",
        "sequence": "benchmarks.paper.measured.sequence",
        "skill_learning": "benchmarks.paper.measured.skill_learning",
        "teacher_context": "benchmarks.paper.measured.teacher_context",
        "teacher_weights": "benchmarks.paper.measured.teacher_weights",
        "unjudged": "benchmarks.paper.measured.unjudged",
    },
    "harness.report.figures": {
        "BASE": "harness.report.style.BASE",
        "DARK": "harness.report.style.DARK",
        "DASHES": "harness.report.style.DASHES",
        "Drawer": "harness.report.pictures.source_of",
        "FIXED": "harness.report.style.FIXED",
        "GRID": "harness.report.style.GRID",
        "HEAT": "harness.report.style.HEAT",
        "INK": "harness.report.style.INK",
        "MARKERS": "harness.report.style.MARKERS",
        "MUTED": "harness.report.style.MUTED",
        "OTHERS": "harness.report.style.OTHERS",
        "PAPER": "harness.report.style.PAPER",
        "Picture": "harness.report.pictures.picture.Picture",
        "SHADE": "harness.report.style.SHADE",
        "STYLE": "harness.report.style.STYLE",
        "curve": "harness.report.style.curve",
        "grid": "harness.report.style.grid",
        "legend": "harness.report.style.legend",
        "looks": "harness.report.style.looks",
        "save": "harness.report.style.save",
    },
    "harness.report.paper": {
        "COLUMNS": "benchmarks.paper.form.COLUMNS",
        "CURVES_ONLY": "benchmarks.paper.items.CURVES_ONLY",
        "ITEMS": "benchmarks.paper.items.ITEMS",
        "Item": "benchmarks.paper.items.Item",
        "ROOT": "benchmarks.paper.write.ROOT",
        "TITLES": "benchmarks.paper.form.TITLES",
        "bars": "benchmarks.paper.pictures.bars",
        "lines": "benchmarks.paper.pictures.lines",
        "plane": "benchmarks.paper.pictures.plane",
        "write_paper": "benchmarks.paper.write.write_paper",
    },
    "harness.report.tables": {
        "Column": "harness.report.table.Column",
        "TEX": "harness.report.table.TEX",
        "Table": "harness.report.table.Table",
    },
    "harness.retention": {
        "FOLDER": "harness.evaluation.lm_eval_tasks.FOLDER",
        "JACKKNIFE_LIMIT": "harness.evaluation.retention.JACKKNIFE_LIMIT",
        "RetentionTask": "harness.evaluation.lm_eval_tasks.RetentionTask",
        "SEEDS": "harness.evaluation.lm_eval_context.SEEDS",
        "Suite": "harness.evaluation.suite.Suite",
        "jackknife": "harness.evaluation.retention.jackknife",
        "load_suite": "harness.evaluation.suite.load_suite",
        "run_suite": "harness.evaluation.retention.run_suite",
    },
    "harness.retention_model": {
        "EngineModel": "harness.evaluation.lm_eval_model.EngineModel",
        "GENERATED_AT_ONCE": "harness.evaluation.lm_eval_model.GENERATED_AT_ONCE",
        "HEAD_VALUES": "harness.evaluation.lm_eval_model.HEAD_VALUES",
        "LOCAL": "harness.evaluation.lm_eval_model.LOCAL",
        "LiveModel": "harness.evaluation.lm_eval_model.LiveModel",
        "PLAIN": "harness.evaluation.lm_eval_model.PLAIN",
        "Row": "harness.evaluation.scoring_rows.PackedRow",
        "SHARED_FROM": "harness.evaluation.lm_eval_model.SHARED_FROM",
        "SHARED_ROOM": "harness.evaluation.scoring_rows.SHARED_ROOM",
        "unchanged": "harness.evaluation.lm_eval_model.unchanged",
    },
    "harness.sampler": {
        "Completion": "harness.sampling.sampler.Completion",
        "Sampler": "harness.sampling.transformers.TransformersSampler",
        "common_prefix": "harness.sampling.sampler.common_prefix",
        "seed_for": "harness.base.seeds.seed_for",
    },
    "harness.sequence": {
        "check_teacher": "harness.runs.teacher_check.check_teacher",
        "engine_for": "harness.runs.engines.engine_for",
        "evaluator": "harness.runs.engines.evaluator_for",
        "load_model": "harness.runs.engines.load_order_model",
        "run_order": "harness.runs.sequence.run_order",
        "sampler_for": "harness.runs.engines.sampler_for",
    },
    "harness.skills": {
        "Example": "harness.skills.skill.Example",
        "FileSkill": "harness.skills.files.FileSkill",
        "ORACLE_TEMPLATE": "harness.skills.templates.ORACLE_TEMPLATE",
        "Skill": "harness.skills.skill.Skill",
        "TEACHER_CONTEXTS": "harness.skills.templates.TEACHER_CONTEXTS",
        "TEACHER_TEMPLATES": "harness.skills.templates.TEACHER_TEMPLATES",
        "chat_prompt": "harness.skills.files.chat_prompt",
        "fingerprint": "harness.skills.skill.examples_fingerprint",
        "get_skill": "harness.skills.registry.get_skill",
        "named": "harness.base.registry.plugin_named",
        "only_subclass": "harness.base.registry.only_subclass",
        "read_jsonl": "harness.base.files.read_jsonl",
    },
    "harness.training": {
        "IMPORTANCE_CAP": "harness.learning.stage.IMPORTANCE_CAP",
        "MICRO_BATCH_TOKENS": "harness.models.memory.MICRO_BATCH_TOKENS",
        "Positions": "harness.learning.packing.Positions",
        "Row": "harness.learning.packing.Row",
        "Stage": "harness.learning.stage.Stage",
        "Step": "harness.learning.stage.Step",
        "TREE": "harness.learning.packing.TREE",
        "Teacher": "harness.learning.teacher.Teacher",
        "Trainer": "harness.learning.trainer.Trainer",
        "TrainingConfig": "harness.learning.trainer.TrainingConfig",
        "VOCABULARY_CHUNK": "harness.learning.packing.VOCABULARY_CHUNK",
        "chunks": "harness.learning.packing.chunks",
        "completion_states": "harness.learning.packing.completion_states",
        "cross_entropy": "harness.learning.trainer.cross_entropy",
        "draws": "harness.learning.draws.draws",
        "learning": "harness.learning.trainer.learning",
        "learning_rate": "harness.learning.trainer.learning_rate",
        "micro_batches": "harness.learning.packing.micro_batches",
        "seed_all": "harness.learning.draws.seed_all",
    },
    "harness.vllm_sampler": {
        "Engine": "harness.sampling.vllm.Engine",
        "PROBE": "harness.sampling.vllm.PROBE",
        "REMEDY": "harness.sampling.settings.REMEDY",
        "ROOM": "harness.sampling.vllm.KV_CACHE_GIB",
        "VLLMConfig": "harness.sampling.settings.VLLMConfig",
        "VLLMSampler": "harness.sampling.vllm.VLLMSampler",
        "advice": "harness.runs.engines.advice",
        "version": "harness.sampling.settings.version",
    },
}
