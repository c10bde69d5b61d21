package org.tornadomoe.spark;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.ObjectInputStream;
import java.io.ObjectOutputStream;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.StructType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.ExpertPlacementStrategy;
import org.tornadomoe.config.Int8Scheme;

/** What needs no cluster. */
class MoeScorerTest {
    private static final String CHECKPOINT = "src/test/resources/golden/hf/mixtral";
    private static final MoeScorer SCORER =
            MoeScorer.of(CHECKPOINT, 0, "hidden", "output").withBackend("cpu").withMaxTokens(8);

    private static List<Row> score(MoeScorer scorer, List<Row> rows) {
        Engine engine = Engine.acquire(scorer, null);
        try {
            List<Row> all = new ArrayList<>();
            new ScoredRows(rows.iterator(), 1, engine, scorer.latency().toNanos()).forEachRemaining(all::add);
            return all;
        } finally {
            engine.release();
        }
    }

    @Test
    void aRowGetsTheSameBitsWhateverIsBesideIt() {
        List<Row> rows = new ArrayList<>();
        for (long id = 0; id < 50; id++) {
            List<Float> values = new ArrayList<>();
            for (float value : SparkJob.hidden(id)) {
                values.add(value);
            }
            // as an array, as Spark's sequence, and missing
            Object hidden = id % 7 == 3
                    ? null
                    : id % 2 == 0
                            ? SparkJob.hidden(id)
                            : scala.jdk.javaapi.CollectionConverters.asScala(values)
                                    .toSeq();
            rows.add(RowFactory.create(id, hidden));
        }
        try (MoeLayer layer = MoeLayer.load(
                Path.of(CHECKPOINT), 0, MoeOptions.DEFAULT.withMaxTokens(1).withBackend("cpu"))) {
            for (Duration latency : List.of(Duration.ofNanos(1), Duration.ofHours(1))) {
                List<Row> scored = score(SCORER.withLatency(latency), rows);
                assertThat(scored).hasSize(50);
                for (Row row : scored) {
                    long id = row.getLong(0);
                    assertThat(row.get(2)).isEqualTo(id % 7 == 3 ? null : layer.forward(SparkJob.hidden(id)));
                }
            }
        }
    }

    @Test
    void callsGrowAndShrinkWithWhatTheyTake() {
        Engine engine = Engine.acquire(SCORER, "grows");
        assertThat(engine.batch()).isEqualTo(1);
        engine.took(10, 1, 100);
        engine.took(10, 2, 100);
        assertThat(engine.batch()).isEqualTo(4);
        engine.took(10, 1, 100);
        assertThat(engine.batch())
                .as("after the short last call of a partition")
                .isEqualTo(4);
        engine.took(10, 4, 100);
        engine.took(10, 8, 100);
        assertThat(engine.batch()).as("the layer's most").isEqualTo(8);
        engine.took(60, 8, 100);
        assertThat(engine.batch()).isEqualTo(8);
        engine.took(101, 8, 100);
        assertThat(engine.batch()).isEqualTo(4);
        assertThat(Engine.acquire(SCORER.withLatency(Duration.ofDays(3)), "grows"))
                .isSameAs(engine);
        Engine another = Engine.acquire(SCORER, "another");
        assertThat(another).isNotSameAs(engine);
        assertThat(Engine.loaded().keySet()).contains("grows", "another");
        engine.release();
        another.release();
        Engine.unload();
        assertThat(Engine.loaded().keySet()).as("one of two uses has ended").containsExactly("grows");
        engine.release();
        Engine.unload();
        assertThat(Engine.loaded()).isEmpty();
    }

    @Test
    void theGpuThatSparkGaveIsTheDevice() {
        assertThat(SCORER.deviceAt("1")).isNull();
        assertThat(SCORER.withDevice("cuda").deviceAt("1")).isEqualTo("cuda:1");
        assertThat(SCORER.withDevice("cuda").deviceAt(null)).isEqualTo("cuda");
        assertThat(SCORER.withDevice("cuda:0").deviceAt("1")).isEqualTo("cuda:0");
    }

    @Test
    void wrongColumnsAndSettingsAreNamed() {
        StructType schema = new StructType()
                .add("id", DataTypes.LongType)
                .add("hidden", DataTypes.createArrayType(DataTypes.FloatType));
        assertThat(SCORER.outputSchema(schema).simpleString())
                .isEqualTo("struct<id:bigint,hidden:array<float>,output:array<float>>");
        assertThatThrownBy(() -> MoeScorer.of(CHECKPOINT, 0, "x", "output").outputSchema(schema))
                .hasMessage("input: expected one of id, hidden, got 'x'");
        assertThatThrownBy(() -> MoeScorer.of(CHECKPOINT, 0, "id", "output").outputSchema(schema))
                .hasMessage("input: expected a column of array<float>, 'id' is bigint");
        assertThatThrownBy(() -> MoeScorer.of(CHECKPOINT, 0, "hidden", "id").outputSchema(schema))
                .hasMessage("output: expected a new column, 'id' is there already");
        assertThatThrownBy(() -> SCORER.withScheme(Int8Scheme.W8A8_TENSOR))
                .hasMessageStartingWith("scheme: expected one whose results don't depend on the batch");
        assertThatThrownBy(() -> SCORER.withLatency(Duration.ZERO)).hasMessageStartingWith("latency: expected");
        assertThatThrownBy(() -> score(SCORER, List.of(RowFactory.create(1L, new float[] {1}))))
                .hasMessage("input: expected rows of 128 values (the layer's hidden size), got one of 1");
    }

    /** Before any row is looked at: rows hold nothing else that a router reads. */
    @ParameterizedTest
    @CsvSource({
        "deepseek_v4_hash, 0, 'layer 0 of deepseek_v4 can''t run on rows of hidden states: its router also reads"
                + " tokens'' ids'",
        "zaya_next, 1, 'layer 1 of zaya can''t run on rows of hidden states: its router also reads the states of the"
                + " router'",
        "kimi_k3, 1, 'layer 1 of kimi_linear can''t run on rows of hidden states: its experts compute in a narrower"
                + " space'"
    })
    void aLayerThatRowsDoNotServeIsRefused(String family, int layer, String message) {
        Path checkpoint = Path.of("src/test/resources/golden/families").resolve(family);
        MoeScorer scorer = MoeScorer.of(checkpoint.toString(), layer, "hidden", "output");
        assertThatThrownBy(scorer::requireHiddenStatesAlone)
                .isInstanceOf(UnsupportedOperationException.class)
                .hasMessageStartingWith(message);
        assertThatThrownBy(() -> Engine.acquire(scorer, null)).hasMessageStartingWith(message);
        assertThatThrownBy(() -> TokenRouter.of(scorer, new TokenRouter.Owners(2, ExpertPlacementStrategy.LINEAR)))
                .hasMessageStartingWith(message);
    }

    /** The first layer's router has none before it, and an executor's checkpoint may not be here. */
    @Test
    void othersAreNotRefused() {
        MoeScorer.of("src/test/resources/golden/families/zaya_first", 0, "hidden", "output")
                .requireHiddenStatesAlone();
        MoeScorer.of("/nowhere", 0, "hidden", "output").requireHiddenStatesAlone();
    }

    @Test
    void itGoesToTheExecutors() throws Exception {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        try (ObjectOutputStream out = new ObjectOutputStream(bytes)) {
            out.writeObject(SCORER);
        }
        try (ObjectInputStream in = new ObjectInputStream(new ByteArrayInputStream(bytes.toByteArray()))) {
            assertThat(in.readObject()).isEqualTo(SCORER);
        }
    }
}
