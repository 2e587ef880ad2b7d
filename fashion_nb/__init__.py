"""Fashion-MNIST with small networks: their costs and receptive fields, training, and honest
results.

    import fashion_nb as fnb

    data = fnb.load_fashion_mnist()
    report = fnb.model_cost(fnb.build_model("stride_2"))
    run = fnb.train("stride_2", data=data)
    fnb.evaluate(run, data=data)

`dir(fnb)` lists the public names; each is imported when it is first used, so that `import
fashion_nb` is instant.
"""
from importlib import import_module as _import_module

__version__ = "0.1.0"

# public name -> the module that it lives in; tests/test_public_face.py holds this table
_PUBLIC = {
    "CLASS_NAMES": "data.idx",
    "DataError": "data.idx",
    "FashionMNIST": "data.fashion_mnist",
    "load_fashion_mnist": "data.fashion_mnist",
    "audit": "explore.audit",
    "build_model": "models.zoo",
    "list_models": "models.zoo",
    "model_info": "models.zoo",
    "register_model": "models.zoo",
    "register_block": "models.words",
    "open_model": "models.files",
    "CostError": "analysis.terms",
    "register_handler": "analysis.operations",
    "model_cost": "analysis.cost",
    "compare_costs": "analysis.cost",
    "FieldError": "analysis.axis",
    "register_field": "analysis.field_walk",
    "receptive_field": "analysis.field",
    "effective_field": "analysis.field",
    "verify_cost": "checks.verify",
    "verify_field": "checks.verify",
    "register_augmentation": "training.augment",
    "TrainConfig": "training.config",
    "TrainError": "training.schedules",
    "train": "training.loop",
    "resume": "training.loop",
    "train_many": "training.parallel",
    "evaluate": "evaluation.evaluation",
    "results_table": "evaluation.plots",
    "compare": "evaluation.comparison",
    "load_pretrained": "prediction.pretrained",
    "predict": "prediction.predict",
    "leaderboard": "experiments.leaderboard",
    "run_experiment": "experiments.leaderboard",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fashion_nb' has no attribute {name!r}")
    value = getattr(_import_module(f"fashion_nb.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
