"""Sends the figures of a run to MLflow.

    pip install mlflow
    python examples/track_mlflow.py
    mlflow server --backend-store-uri sqlite:///mlflow.db     # shows them

MLFLOW_TRACKING_URI names a server instead of the file mlflow.db.
"""

import os

import mlflow

import flaxmnist


def main(config="mlp", **options):
    """Trains; `options` are those of `flaxmnist.train`. Returns the finished run."""
    mlflow.set_tracking_uri(
        os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    )
    mlflow.set_experiment("mnist")
    with mlflow.start_run():

        def log(result):
            """Receives each logged record, and the summary at the end."""
            mlflow.log_metrics(result.scalars(), step=result.step)

        run = flaxmnist.train(config, hooks=[log], **options)
        mlflow.log_params(run.summary.config)
        if run.config.report:
            mlflow.log_artifact(run.workdir / "report.html")
    return run


if __name__ == "__main__":
    main()
