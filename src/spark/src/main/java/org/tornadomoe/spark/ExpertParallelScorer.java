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
 * Scores rows with a layer that no executor can hold: the layer's experts are partitioned among owners, one partition
 * each. A row is routed where it is and crosses once to every owner of some of its experts. The owners compute and send
 * their sums, in float, back to the row, where they are added in the order of owners.
 *
 * {@snippet :
 * Dataset<Row> scored = MoeScorer.of("/models/DeepSeek-V3", 3, "hidden", "output")
 *         .expertParallel("id", 32)
 *         .transform(rows);
 * }
 *
 * <p>A row's output depends only on its hidden state and the owners' experts, to the bit: not on partitions,
 * neighbouring rows or repeated tasks. It equals the whole layer's output except for rounding: weights and owners' sums
 * are rounded to float, so an element is within 4 · 2^-24 · Σ |weight · expert's output| of the CPU layer's, which
 * rounds once. If the router's weight multiplies the input (Llama 4), the input is quantised after the weight was
 * rounded, and may get the neighbouring integer. Routing is in float64, as in the CPU's layer; a GPU's own router, in
 * float, may choose differently between experts of nearly the same score. Hidden states cross as int8 with a scale if
 * the experts quantise them in that way anyway ({@code w8a8_channel}), otherwise as floats.
 *
 * <p>An executor reads only its owners' experts from the path, and keeps at most {@code held} owners' experts, for
 * later jobs too. If another owner's are needed, the least recently used ones are evicted; if all are in use, the task
 * waits. {@link MoeScorer#unload} unloads all of them. A task that finds changed sizes or modification times of the
 * checkpoint's files reads them anew; the files must not change while a job runs. Spark prefers to send an owner's rows
 * to an executor that has its experts, and sends them elsewhere if that one has no free core for {@code
 * spark.locality.wait}.
 *
 * <p>The rows are read twice, for routing and for the result, and must be the same both times. If several actions run
 * on one result, only the first routes.
 *
 * <p>An owner of popular experts gets more rows than others, and one task computes all of them unless the owner has
 * {@linkplain #withCopies(int, int) copies}. Copies partition its rows by a hash of {@code id}, for as many tasks. The
 * output is the same. The cost in time and memory is that each executor that runs such a task loads the owner's experts
 * and holds them, once for all its tasks.
 *
 * @param scorer the layer, the columns, and how owners compute
 * @param id a column with a different, non-null value in each row, of a type that Spark can sort
 * @param owners number of owners among which the experts are partitioned, 1 or more; an owner without experts does
 *     nothing
 * @param placement whether an owner's experts are consecutive
 * @param held the maximum number of owners whose experts an executor holds at a time, 1 or more
 * @param copies [owners], the number of partitions of each owner's rows, 1 or more
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

    /** Splits each owner's rows into that many partitions, 1 or more. */
    public ExpertParallelScorer withCopies(int copies) {
        return new ExpertParallelScorer(scorer, id, owners, placement, held, Collections.nCopies(owners, copies));
    }

    /**
     * Splits one owner's rows into that many partitions; for a hot owner, which {@link #rowsPerOwner} shows.
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
     * The number of rows of each owner that gets any: {@code owner} and {@code rows}. Lazy; it routes all rows and
     * sends none.
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
     * The rows, each with its output, in no particular order. Lazy, like other Spark transformations; a duplicate or
     * null {@code id} fails the job.
     *
     * @throws IllegalArgumentException as {@link MoeScorer#transform(Dataset)}, or if there is no column {@code id}
     * @throws UnsupportedOperationException as {@link MoeScorer#transform(Dataset)}
     */
    public Dataset<Row> transform(Dataset<Row> rows) {
        return reduce(rows, new PlacedRows(exchanged(rows), this).toJavaRDD());
    }

    /** Like {@link #transform(Dataset)}, with a resource profile for the owners' tasks. */
    public Dataset<Row> transform(Dataset<Row> rows, ResourceProfile profile) {
        return reduce(rows, new PlacedRows(exchanged(rows), this).toJavaRDD().withResources(profile));
    }

    /** The schema after {@link #transform(Dataset)}. Throws what that method throws. */
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

    /** The first partition of each owner's rows; an owner's partitions follow those of the owners before it. */
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

    /** The rows sent to the owners, in the owners' partitions. */
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

    /** An owner's results for the rows of a partition. */
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
