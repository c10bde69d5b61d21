package org.tornadomoe.spark;

import java.io.Serializable;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Objects;
import org.apache.spark.TaskContext;
import org.apache.spark.api.java.JavaRDD;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.resource.ResourceProfile;
import org.apache.spark.sql.Column;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Encoders;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.functions;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.StructType;
import org.tornadomoe.config.ExpertPlacementStrategy;

/**
 * The scorer's column for a layer that no executor can hold: its experts are partitioned among owners. Rows are routed
 * where they are; each crosses once to every owner of some of its experts, a partition each; there these compute; and
 * their sums, in float, cross back to the row, where they are added in the order of owners.
 *
 * {@snippet :
 * Dataset<Row> scored = MoeScorer.of("/models/DeepSeek-V3", 3, "hidden", "output")
 *         .expertParallel("id", 32)
 *         .transform(rows);
 * }
 *
 * <p>A row's output depends on its hidden state and the owners' experts alone, to the bit: not on partitions, on its
 * neighbours, or on how often a task is run. It is the whole layer's but for rounding: weights and an owner's sums are
 * rounded to float, so that an element is within 4 · 2^-24 · Σ |weight · expert's output| of the layer's on the CPU,
 * which rounds once. Where the router's weight is on the input (Llama 4), that input is quantised after the weight was
 * rounded, and may fall to the neighbouring integer. Routing is in float64, as the CPU's layer has it; a GPU's, in
 * float, may choose otherwise among experts of nearly the same score. Hidden states cross in int8 with a scale where
 * that is what experts see of them anyway ({@code w8a8_channel}), otherwise in float.
 *
 * <p>An owner's executor reads its experts alone, by the path, and keeps at most {@code held} owners' experts, for
 * later jobs too. Where another owner's are asked for, those that were not used for the longest time give way; a task
 * waits where all are in use. {@link MoeScorer#unload} gives back all of them. Stale ones are not used: a task that
 * finds other sizes or times of modification of the checkpoint's files reads anew. The files have to stay as they are
 * while a job runs. Spark is asked to send an owner's rows to an executor that has its experts, and sends them
 * elsewhere where that one has no core free for {@code spark.locality.wait}.
 *
 * <p>The rows are read twice, for routing and for the result, and have to be the same both times. Where several actions
 * are run on one result, they are routed for the first.
 *
 * <p>An owner of popular experts gets more rows than others, and one task has all of them, unless the owner has
 * {@linkplain #withCopies(int, int) copies}: partitions of its rows, of which a hash of {@code id} chooses, for as many
 * tasks. The output is the same. Each executor that runs one of them loads the owner's experts and holds them, once for
 * all that it runs: such is the price, in time and memory, as of redundant experts elsewhere.
 *
 * @param scorer the layer, the columns, and how owners compute
 * @param id a column with another value in each row, none null, of a type that Spark can sort
 * @param owners that the experts are partitioned among, 1 or more; one that gets none does nothing
 * @param placement whether an owner's experts are neighbours
 * @param held the most owners whose experts an executor holds at a time, 1 or more
 * @param copies partitions of each owner's rows, [owners], 1 or more
 */
public record ExpertParallelScorer(
        MoeScorer scorer, String id, int owners, ExpertPlacementStrategy placement, int held, List<Integer> copies)
        implements Serializable {
    private static final long serialVersionUID = 1L;

    /** Checks what can be checked without the layer. */
    public ExpertParallelScorer {
        Objects.requireNonNull(scorer, "scorer");
        Objects.requireNonNull(id, "id");
        Objects.requireNonNull(placement, "placement");
        if (owners < 1) {
            throw new IllegalArgumentException("owners: expected a positive number, got " + owners);
        }
        if (held < 1) {
            throw new IllegalArgumentException("held: expected a positive number, got " + held);
        }
        copies = List.copyOf(copies);
        if (copies.size() != owners) {
            throw new IllegalArgumentException(
                    "copies: expected " + owners + " numbers, of an owner each, got " + copies.size());
        }
        for (int each : copies) {
            if (each < 1) {
                throw new IllegalArgumentException("copies: expected a positive number, got " + each);
            }
        }
    }

    public ExpertParallelScorer withPlacement(ExpertPlacementStrategy placement) {
        return new ExpertParallelScorer(scorer, id, owners, placement, held, copies);
    }

    public ExpertParallelScorer withHeld(int held) {
        return new ExpertParallelScorer(scorer, id, owners, placement, held, copies);
    }

    /** Each owner's rows in so many partitions, 1 or more. */
    public ExpertParallelScorer withCopies(int copies) {
        return new ExpertParallelScorer(scorer, id, owners, placement, held, Collections.nCopies(owners, copies));
    }

    /**
     * One owner's rows in so many partitions: of a hot one, as {@link #rowsPerOwner} shows it.
     *
     * @param owner from 0
     * @param copies 1 or more
     */
    public ExpertParallelScorer withCopies(int owner, int copies) {
        if (owner < 0 || owner >= owners) {
            throw new IllegalArgumentException("owner: expected 0 to " + (owners - 1) + ", got " + owner);
        }
        List<Integer> changed = new ArrayList<>(this.copies);
        changed.set(owner, copies);
        return new ExpertParallelScorer(scorer, id, owners, placement, held, changed);
    }

    /**
     * How many rows each owner gets that gets any: {@code owner} and {@code rows}. Lazy; it routes all rows and sends
     * none.
     *
     * @throws IllegalArgumentException as {@link #transform(Dataset)}
     */
    public Dataset<Row> rowsPerOwner(Dataset<Row> rows) {
        return routed(rows)
                .groupBy("owner")
                .agg(functions.count("*").as("rows"))
                .orderBy("owner");
    }

    /**
     * The rows, each with its output, in no order. Lazy, as Spark is; a value of {@code id} that comes twice, or is
     * null, fails the job.
     *
     * @throws IllegalArgumentException as {@link MoeScorer#transform(Dataset)}, or if there is no column {@code id}
     * @throws UnsupportedOperationException as {@link MoeScorer#transform(Dataset)}
     */
    public Dataset<Row> transform(Dataset<Row> rows) {
        return reduce(rows, new PlacedRows(exchanged(rows), this).toJavaRDD());
    }

    /** As {@link #transform(Dataset)}, the owners' tasks with resources of their own. */
    public Dataset<Row> transform(Dataset<Row> rows, ResourceProfile profile) {
        return reduce(rows, new PlacedRows(exchanged(rows), this).toJavaRDD().withResources(profile));
    }

    /** What {@link #transform(Dataset)} makes of a schema. Throws what it throws. */
    public StructType outputSchema(StructType schema) {
        idType(schema);
        return scorer.outputSchema(schema);
    }

    private DataType idType(StructType schema) {
        if (schema.getFieldIndex(id).isEmpty()) {
            throw new IllegalArgumentException(
                    "id: expected one of " + String.join(", ", schema.fieldNames()) + ", got '" + id + "'");
        }
        return schema.fields()[schema.fieldIndex(id)].dataType();
    }

    /** The first partition of each owner's rows, after those of the owners before it. */
    private int[] first() {
        int[] first = new int[owners];
        for (int owner = 1; owner < owners; owner++) {
            first[owner] = Math.addExact(first[owner - 1], copies.get(owner - 1));
        }
        return first;
    }

    int ownerOf(int partition) {
        int at = Arrays.binarySearch(first(), partition);
        return at < 0 ? -at - 2 : at;
    }

    /** What each owner is sent, in its partitions. */
    Dataset<Row> exchanged(Dataset<Row> rows) {
        int[] first = first();
        Column owner = functions.col("owner").plus(1);
        Column copy = functions.pmod(
                functions.xxhash64(functions.col("id")),
                functions.element_at(
                        functions.lit(
                                copies.stream().mapToInt(Integer::intValue).toArray()),
                        owner));
        return routed(rows)
                .repartitionById(
                        Math.addExact(first[owners - 1], copies.getLast()),
                        functions
                                .element_at(functions.lit(first), owner)
                                .plus(copy)
                                .cast(DataTypes.IntegerType));
    }

    private Dataset<Row> routed(Dataset<Row> rows) {
        scorer.requireHiddenStatesAlone();
        StructType schema = outputSchema(rows.schema());
        MapPartitionsFunction<Row, Row> route =
                partition -> new RoutedRows(partition, TokenRouter.of(scorer, partitioning()), this);
        return rows.select(column(id), column(scorer.input()))
                .mapPartitions(route, Encoders.row(partSchema(idType(schema))));
    }

    private Dataset<Row> reduce(Dataset<Row> rows, JavaRDD<Row> computed) {
        Dataset<Row> parts = rows.sparkSession().createDataFrame(computed, partSchema(idType(rows.schema())));
        int input = rows.schema().fieldIndex(scorer.input());
        Dataset<Row> whole = rows.select(
                column(id).as("id"),
                functions.lit(ReducedRows.ROW).as("owner"),
                functions.lit(0).as("of"),
                functions.lit(null).cast(DataTypes.BinaryType).as("values"),
                functions.struct(functions.col("*")).as("row"));
        MapPartitionsFunction<Row, Row> reduce = partition -> new ReducedRows(partition, input);
        return whole.union(parts.withColumn("row", functions.lit(null).cast(rows.schema())))
                .repartition(functions.col("id"))
                .sortWithinPartitions("id", "owner")
                .mapPartitions(reduce, Encoders.row(outputSchema(rows.schema())));
    }

    private static Column column(String name) {
        return functions.col("`" + name.replace("`", "``") + "`");
    }

    private static StructType partSchema(DataType id) {
        return new StructType()
                .add("id", id, false)
                .add("owner", DataTypes.IntegerType, false)
                .add("of", DataTypes.IntegerType, false)
                .add("values", DataTypes.BinaryType, false);
    }

    /** What an owner makes of the rows of a partition. */
    Iterator<Row> compute(Iterator<Row> partition) {
        TaskContext task = TaskContext.get();
        OwnedRows computed = new OwnedRows(partition, this, MoeScorer.address(task));
        MoeScorer.atEnd(task, computed::close);
        return computed;
    }

    TokenRouter.Owners partitioning() {
        return new TokenRouter.Owners(owners, placement);
    }
}
