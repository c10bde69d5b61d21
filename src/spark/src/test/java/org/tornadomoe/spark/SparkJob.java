package org.tornadomoe.spark;

import java.io.BufferedOutputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.function.Consumer;
import org.apache.spark.api.java.function.MapFunction;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.resource.ResourceProfile;
import org.apache.spark.resource.ResourceProfileBuilder;
import org.apache.spark.resource.TaskResourceRequests;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerExecutorAdded;
import org.apache.spark.scheduler.SparkListenerExecutorRemoved;
import org.apache.spark.scheduler.SparkListenerStageSubmitted;
import org.apache.spark.scheduler.SparkListenerTaskEnd;
import org.apache.spark.scheduler.StageInfo;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Encoders;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.StructType;

/**
 * A job on a cluster, whose driver is this JVM. With owners (not 0) it is the expert-parallel plan. It reports
 * each executor that has come or is lost, each stage that begins, and each task that has ended, then what is loaded on
 * the executors, and what is left when they have given it back; and writes ids and outputs.
 */
record SparkJob(Path checkpoint, String backend, String device, int rows, int partitions, Path out, int owners) {
    static final int H = 128;

    /** Every 100th row has none. */
    static float[] hidden(long id) {
        float[] hidden = new float[H];
        for (int i = 0; i < H; i++) {
            hidden[i] = (float) Math.sin(id * 31.0 + i);
        }
        return hidden;
    }

    /** @param event takes what happens, a line at a time, from two threads */
    void run(SparkSession spark, Consumer<String> event) throws IOException {
        SparkListener listener = listener(event);
        spark.sparkContext().addSparkListener(listener);
        try {
            score(spark, event);
        } finally {
            spark.sparkContext().removeSparkListener(listener);
        }
    }

    private static SparkListener listener(Consumer<String> event) {
        return new SparkListener() {
            @Override
            public void onExecutorAdded(SparkListenerExecutorAdded added) {
                event.accept("executor " + added.executorId() + " added: "
                        + added.executorInfo().totalCores() + " cores, "
                        + added.executorInfo().resourcesInfo().values().mkString(" "));
            }

            @Override
            public void onExecutorRemoved(SparkListenerExecutorRemoved removed) {
                event.accept("executor " + removed.executorId() + " lost: " + first(removed.reason()));
            }

            @Override
            public void onStageSubmitted(SparkListenerStageSubmitted submitted) {
                StageInfo stage = submitted.stageInfo();
                event.accept(
                        "stage " + stage.stageId() + "." + stage.attemptNumber() + ": " + stage.numTasks() + " tasks");
            }

            @Override
            public void onTaskEnd(SparkListenerTaskEnd task) {
                event.accept("task " + task.taskInfo().id() + " in stage " + task.stageId() + "."
                        + task.stageAttemptId() + " on executor "
                        + task.taskInfo().executorId() + ": "
                        + first(task.reason().toString()));
            }

            private static String first(String lines) {
                return lines.lines().findFirst().orElse("");
            }
        };
    }

    private void score(SparkSession spark, Consumer<String> event) throws IOException {
        event.accept("driver of Spark " + spark.version());
        event.accept("application " + spark.sparkContext().applicationId());
        StructType schema = new StructType()
                .add("id", DataTypes.LongType)
                .add("hidden", DataTypes.createArrayType(DataTypes.FloatType, false), true);
        MapFunction<Long, Row> make = id -> RowFactory.create(id, id % 100 == 99 ? null : hidden(id));
        Dataset<Row> input = spark.range(0, rows, 1, partitions).map(make, Encoders.row(schema));
        MoeScorer scorer = MoeScorer.of(checkpoint.toString(), 0, "hidden", "output")
                .withBackend(backend)
                .withDevice(device.equals("any") ? null : device)
                .withMaxTokens(4)
                .withLatency(Duration.ofMillis(20));
        event.accept("job: " + rows + " rows in " + partitions + " partitions"
                + (owners > 0 ? ", " + owners + " owners of experts" : ""));
        ExpertParallelScorer plan =
                owners > 0 ? scorer.expertParallel("id", owners).withHeld(2) : null;
        write(plan == null ? scorer.transform(input) : plan.transform(input), out);
        // Tasks that take half a GPU, by a profile of their own, over other partitions.
        ResourceProfile profile = new ResourceProfileBuilder()
                .require(new TaskResourceRequests().cpus(1).resource(MoeScorer.GPU, 0.5))
                .build();
        event.accept("job: these rows in 3 partitions, tasks of 1 core and half a GPU");
        Dataset<Row> other = input.repartition(3);
        write(
                plan == null ? scorer.transform(other, profile) : plan.transform(other, profile),
                Path.of(out + ".profile"));
        event.accept("loaded: " + onExecutors(spark, SparkJob::loaded));
        event.accept("unloaded: " + MoeScorer.unload(spark) + ", left: " + onExecutors(spark, SparkJob::loaded));
    }

    private static List<String> onExecutors(SparkSession spark, MapPartitionsFunction<Long, String> what) {
        return spark.range(0, 4, 1, 4)
                .mapPartitions(what, Encoders.STRING())
                .distinct()
                .collectAsList();
    }

    private static Iterator<String> loaded(Iterator<Long> ids) {
        return List.of(Engine.loaded() + " of " + Engine.loads() + " loaded").iterator();
    }

    private static void write(Dataset<Row> scored, Path file) throws IOException {
        try (DataOutputStream out = new DataOutputStream(new BufferedOutputStream(Files.newOutputStream(file)))) {
            for (Row row : scored.select("id", "output").collectAsList()) {
                List<Float> values = row.isNullAt(1) ? new ArrayList<>() : row.getList(1);
                out.writeLong(row.getLong(0));
                out.writeInt(values.size());
                for (float value : values) {
                    out.writeFloat(value);
                }
            }
        }
    }
}
