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
 * The driver of a job, in a JVM of its own: CHECKPOINT BACKEND DEVICE ROWS PARTITIONS OUT [OWNERS]. With owners it is
 * the expert-parallel plan. Prints a line for each executor that has come or is lost, each stage that begins, and each
 * task that has ended, then what is loaded on the executors, and what is left when they have given it back; writes ids
 * and outputs.
 */
final class SparkJob {
    static final int H = 128;

    private SparkJob() {}

    /** Every 100th row has none. */
    static float[] hidden(long id) {
        float[] hidden = new float[H];
        for (int i = 0; i < H; i++) {
            hidden[i] = (float) Math.sin(id * 31.0 + i);
        }
        return hidden;
    }

    public static void main(String[] args) throws IOException {
        int rows = Integer.parseInt(args[3]);
        int partitions = Integer.parseInt(args[4]);
        SparkSession spark = SparkSession.builder().appName("test").getOrCreate();
        System.out.println("driver of Spark " + spark.version());
        System.out.println("application " + spark.sparkContext().applicationId());
        spark.sparkContext().addSparkListener(new SparkListener() {
            @Override
            public void onExecutorAdded(SparkListenerExecutorAdded added) {
                System.out.println("executor " + added.executorId() + " added: "
                        + added.executorInfo().totalCores() + " cores, "
                        + added.executorInfo().resourcesInfo().values().mkString(" "));
            }

            @Override
            public void onExecutorRemoved(SparkListenerExecutorRemoved removed) {
                System.out.println("executor " + removed.executorId() + " lost: " + first(removed.reason()));
            }

            @Override
            public void onStageSubmitted(SparkListenerStageSubmitted submitted) {
                StageInfo stage = submitted.stageInfo();
                System.out.println(
                        "stage " + stage.stageId() + "." + stage.attemptNumber() + ": " + stage.numTasks() + " tasks");
            }

            @Override
            public void onTaskEnd(SparkListenerTaskEnd task) {
                System.out.println("task " + task.taskInfo().id() + " in stage " + task.stageId() + "."
                        + task.stageAttemptId() + " on executor "
                        + task.taskInfo().executorId() + ": "
                        + first(task.reason().toString()));
            }

            private static String first(String lines) {
                return lines.lines().findFirst().orElse("");
            }
        });
        StructType schema = new StructType()
                .add("id", DataTypes.LongType)
                .add("hidden", DataTypes.createArrayType(DataTypes.FloatType, false), true);
        MapFunction<Long, Row> make = id -> RowFactory.create(id, id % 100 == 99 ? null : hidden(id));
        Dataset<Row> input = spark.range(0, rows, 1, partitions).map(make, Encoders.row(schema));
        MoeScorer scorer = MoeScorer.of(args[0], 0, "hidden", "output")
                .withBackend(args[1])
                .withDevice(args[2].equals("any") ? null : args[2])
                .withMaxTokens(4)
                .withLatency(Duration.ofMillis(20));
        System.out.println("job: " + rows + " rows in " + partitions + " partitions"
                + (args.length > 6 ? ", " + args[6] + " owners of experts" : ""));
        ExpertParallelScorer plan = args.length > 6
                ? scorer.expertParallel("id", Integer.parseInt(args[6])).withHeld(2)
                : null;
        write(plan == null ? scorer.transform(input) : plan.transform(input), Path.of(args[5]));
        // Tasks that take half a GPU, by a profile of their own, over other partitions.
        ResourceProfile profile = new ResourceProfileBuilder()
                .require(new TaskResourceRequests().cpus(1).resource(MoeScorer.GPU, 0.5))
                .build();
        System.out.println("job: these rows in 3 partitions, tasks of 1 core and half a GPU");
        Dataset<Row> other = input.repartition(3);
        write(
                plan == null ? scorer.transform(other, profile) : plan.transform(other, profile),
                Path.of(args[5] + ".profile"));
        System.out.println("loaded: " + onExecutors(spark, SparkJob::loaded));
        System.out.println("unloaded: " + MoeScorer.unload(spark) + ", left: " + onExecutors(spark, SparkJob::loaded));
        spark.stop();
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
