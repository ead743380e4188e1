"""An Airflow DAG that embeds every night, and does what the exit code of e5spark asks for.

Put this file into the DAGs folder, and the job file and jobs/embed.py where the workers find them.
It needs apache-airflow-providers-apache-spark and a connection ``spark_default`` in client mode: in
cluster mode spark-submit does not return the exit code of its driver.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException

# What a person has to look at: to run the same command again would end in the same way.
FINAL = {
    2: "usage: correct the job file or the model",
    3: "input: correct the input",
    4: "a gate failed: the rows are written, and somebody should look at the report",
    5: "conflict: another run writes there, or the output has other vectors",
}


class E5SparkOperator(SparkSubmitOperator):
    """spark-submit whose exit code decides between another attempt and an alert.

    Every other code is worth a retry: 75 is transient, and a run that was killed has committed
    chunks that the next one does not embed again.
    """

    def execute(self, context: Any) -> None:  # noqa: ANN401
        """Submits the job; fails at once if another attempt would not help."""
        try:
            super().execute(context)
        except AirflowException as error:
            code = self._hook._submit_sp.returncode
            if code in FINAL:
                raise AirflowFailException(f"e5spark: exit code {code}, {FINAL[code]}.") from error
            raise


def alert(context: Any) -> None:  # noqa: ANN401
    """Sends the failure to whoever is on call; here, to the log of the task."""
    print(f"e5spark needs somebody: {context['exception']}")


with DAG(
    "e5spark_embed",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,  # a second run on the same output ends with exit code 5
) as dag:
    E5SparkOperator(
        task_id="embed",
        application="/opt/e5spark/jobs/embed.py",
        application_args=[
            "/opt/e5spark/conf/embed.toml",
            "--set",
            "input.path=/data/docs/{{ ds }}",
        ],
        name="e5spark",
        properties_file="/opt/e5spark/conf/spark-cluster.conf",
        retries=3,
        retry_delay=timedelta(minutes=5),
        retry_exponential_backoff=True,
        on_failure_callback=alert,
    )
