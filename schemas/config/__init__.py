"""Every knob, its range and its meaning: the configuration of a run, as pydantic models.

Not the data contract (that is `schemas.tables`). A section of the YAML file is a class: those about rows are in `data`,
those about the teacher in `teacher` and `teachers`, workers and the whole in `run`; `load` reads the file, `identity`
says which keys decide what is written.
"""

from stillhouse.schemas.config.curation import (
    BalanceConfig,
    DecontaminationConfig,
    EvaluationConfig,
    IdentityConfig,
    JailbreaksConfig,
    LanguageConfig,
    LowInformationConfig,
    MatchesConfig,
    QuotaConfig,
    RefusalsConfig,
    SemanticConfig,
)
from stillhouse.schemas.config.data import (
    ClassifierConfig,
    DedupeConfig,
    DetoxifyConfig,
    IngestConfig,
    PersonalConfig,
    ProfanityCheckConfig,
    PublishConfig,
    ReviewConfig,
    ScreenConfig,
    SourceConfig,
)
from stillhouse.schemas.config.guards import GuardConfig, QuestionConfig
from stillhouse.schemas.config.identity import (
    config_hash,
    deciding_values,
    differing_keys,
    nested_values,
    values_hash,
    values_of_teacher,
)
from stillhouse.schemas.config.load import absolute, load, override, sampled, validated
from stillhouse.schemas.config.resources import ResourcesConfig, WorkersConfig
from stillhouse.schemas.config.run import Config
from stillhouse.schemas.config.section import STORED, ConfigError, Section, as_path, checked_location, is_local_path
from stillhouse.schemas.config.teacher import (
    OWN_BACKEND,
    GenerateConfig,
    KeepConfig,
    SamplingConfig,
    ScoreConfig,
    TargetsConfig,
    TeacherConfig,
    num_parallel,
)
from stillhouse.schemas.config.teachers import NamedTeacher

__all__ = [
    "OWN_BACKEND",
    "STORED",
    "BalanceConfig",
    "ClassifierConfig",
    "Config",
    "ConfigError",
    "DecontaminationConfig",
    "DedupeConfig",
    "DetoxifyConfig",
    "EvaluationConfig",
    "GenerateConfig",
    "GuardConfig",
    "IdentityConfig",
    "IngestConfig",
    "JailbreaksConfig",
    "KeepConfig",
    "LanguageConfig",
    "LowInformationConfig",
    "MatchesConfig",
    "NamedTeacher",
    "PersonalConfig",
    "ProfanityCheckConfig",
    "PublishConfig",
    "QuestionConfig",
    "QuotaConfig",
    "RefusalsConfig",
    "ResourcesConfig",
    "ReviewConfig",
    "SamplingConfig",
    "ScoreConfig",
    "ScreenConfig",
    "Section",
    "SemanticConfig",
    "SourceConfig",
    "TargetsConfig",
    "TeacherConfig",
    "WorkersConfig",
    "absolute",
    "as_path",
    "checked_location",
    "config_hash",
    "deciding_values",
    "differing_keys",
    "is_local_path",
    "load",
    "nested_values",
    "num_parallel",
    "override",
    "sampled",
    "validated",
    "values_hash",
    "values_of_teacher",
]
