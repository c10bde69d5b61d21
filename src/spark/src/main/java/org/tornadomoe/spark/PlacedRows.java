package org.tornadomoe.spark;

import java.io.Serializable;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.spark.Dependency;
import org.apache.spark.OneToOneDependency;
import org.apache.spark.Partition;
import org.apache.spark.SparkEnv;
import org.apache.spark.TaskContext;
import org.apache.spark.rdd.RDD;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Row;
import org.apache.spark.util.AccumulatorV2;
import org.jspecify.annotations.Nullable;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;
import scala.reflect.ClassTag;

/**
 * The owners' results for the rows sent to them. Spark prefers to run a task where the owner's experts are already
 * loaded; at its end each task reports what its executor has loaded. The rows are routed when the partitions are
 * requested.
 */
final class PlacedRows extends RDD<Row> {
    private static final long serialVersionUID = 1L;

    private static final ClassTag<Row> ROW = ClassTag.apply(Row.class);

    private record Key(String application, MoeScorer scorer, TokenRouter.Owners owners) {}

    /** Used in the driver only. */
    private static final Map<Key, Loaded> LOADED = new ConcurrentHashMap<>();

    private final ExpertParallelScorer plan;
    private final Loaded loaded;
    private final transient Dataset<Row> sent;
    private transient @Nullable RDD<Row> parent;

    /** @param sent the sent rows, partitioned by {@link ExpertParallelScorer#ownerOf} */
    PlacedRows(Dataset<Row> sent, ExpertParallelScorer plan) {
        super(
                sent.sparkSession().sparkContext(),
                CollectionConverters.asScala(List.<Dependency<?>>of()).toList(),
                ROW);
        this.sent = sent;
        this.plan = plan;
        loaded = LOADED.computeIfAbsent(
                new Key(context().applicationId(), Engine.shared(plan.scorer()), plan.partitioning()), key -> {
                    Loaded registered = new Loaded();
                    context().register(registered);
                    return registered;
                });
    }

    private synchronized RDD<Row> parent() {
        RDD<Row> rows = parent;
        if (rows == null) {
            rows = sent.toJavaRDD().rdd();
            parent = rows;
        }
        return rows;
    }

    @Override
    public Partition[] getPartitions() {
        return parent().partitions();
    }

    @Override
    public Seq<Dependency<?>> getDependencies() {
        return CollectionConverters.asScala(List.<Dependency<?>>of(new OneToOneDependency<>(parent())))
                .toList();
    }

    @Override
    public Seq<String> getPreferredLocations(Partition split) {
        int owner = plan.ownerOf(split.index());
        return CollectionConverters.asScala(loaded.value().values().stream()
                        .filter(report -> report.owners.contains(owner))
                        .map(Report::executor)
                        .toList())
                .toList();
    }

    @Override
    public scala.collection.Iterator<Row> compute(Partition split, TaskContext task) {
        java.util.Iterator<Row> rows =
                CollectionConverters.asJava(this.<Row>firstParent(ROW).iterator(split, task));
        java.util.Iterator<Row> computed = plan.compute(rows);
        // Before the owner's engine is released, because another could then replace it.
        MoeScorer.atEnd(task, () -> {
            SparkEnv here = SparkEnv.get();
            loaded.add(new Report(
                    "executor_" + here.blockManager().blockManagerId().host() + "_" + here.executorId(),
                    System.nanoTime(),
                    Engine.owners(plan)));
        });
        return CollectionConverters.asScala(computed);
    }

    /**
     * The owners whose experts an executor has loaded at some time.
     *
     * @param executor its name in Spark's preferred locations
     * @param time the executor's clock
     */
    record Report(String executor, long time, Set<Integer> owners) implements Serializable {}

    /** The last report of each executor, by its name. */
    static final class Loaded extends AccumulatorV2<Report, Map<String, Report>> {
        private static final long serialVersionUID = 1L;

        private final ConcurrentHashMap<String, Report> last = new ConcurrentHashMap<>();

        @Override
        public boolean isZero() {
            return last.isEmpty();
        }

        @Override
        public AccumulatorV2<Report, Map<String, Report>> copy() {
            Loaded copy = new Loaded();
            copy.last.putAll(last);
            return copy;
        }

        @Override
        public void reset() {
            last.clear();
        }

        @Override
        public void add(Report report) {
            last.merge(report.executor, report, (a, b) -> a.time - b.time > 0 ? a : b);
        }

        @Override
        public void merge(AccumulatorV2<Report, Map<String, Report>> other) {
            other.value().values().forEach(this::add);
        }

        @Override
        public Map<String, Report> value() {
            return last;
        }
    }
}
