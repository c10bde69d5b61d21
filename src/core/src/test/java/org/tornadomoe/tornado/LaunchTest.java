package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.graph.ExpertGemm;
import org.tornadomoe.tornado.graph.HopperGemm;
import org.tornadomoe.tornado.graph.PanelGemm;
import org.tornadomoe.tuning.LaunchConfig;
import org.tornadomoe.tuning.LaunchConfigs;
import org.tornadomoe.tuning.LaunchKey;
import org.tornadomoe.tuning.LaunchSpace;
import uk.ac.manchester.tornado.api.WorkerGrid;

/** Files of launch configurations change what is launched, and no bit of what comes of it. */
class LaunchTest {
    private static final Int8Scheme SCHEME = Int8Scheme.W8A8_CHANNEL;
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 150, 70, 40, 51);

    /** Few pairs a block, and many. */
    private static final List<LaunchConfig> PANELS = new PanelGemm().launches();

    private final TornadoExperts experts = new TornadoPanelExperts();

    @TempDir
    Path folder;

    @BeforeEach
    void setFolder() {
        System.setProperty(LaunchConfigs.FOLDER_PROPERTY, folder.toString());
    }

    @AfterEach
    void clearFolder() {
        System.clearProperty(LaunchConfigs.FOLDER_PROPERTY);
    }

    private LaunchSpace space() {
        return Objects.requireNonNull(experts.launches(LAYER.config(), SCHEME.weightKey(), SCHEME.activationKey()));
    }

    private void write(String json) throws IOException {
        Files.writeString(folder.resolve(space().key().fileName()), json);
    }

    private static float[] forward(TornadoMoeKernel kernel, int tokens) {
        ChosenExperts chosen = ChosenExperts.allocate(tokens, LAYER.config().pairsPerToken());
        return LayerChecks.forward(kernel, LAYER.hidden(tokens, tokens), tokens, chosen);
    }

    /** Groups of a task's last launch; a task that has nothing to do has one. */
    private static long groups(TornadoMoeKernel kernel, String task) {
        WorkerGrid grid = kernel.graph().grids().get("moe." + task);
        return grid.getGlobalWork()[0] / grid.getLocalWork()[0] * grid.getGlobalWork()[1];
    }

    /** Each for its own sizes, and for the kernels that it names. */
    @ParameterizedTest
    @CsvSource("128, 768")
    void packedFilesAreOfConfigurationsThatThereAre(int experts, int intermediate) {
        LaunchKey key = new LaunchKey(experts, intermediate, "NVIDIA H200", "int8_w8a8", null, "cuda", "hopper");
        LaunchConfigs found = new LaunchSpace(key, new HopperGemm().launches(), m -> {
                    throw new AssertionError("the rule is asked");
                })
                .find();
        assertThat(found.source()).endsWith("configs/" + key.fileName());
        assertThat(found.forTokens(1).blockSizeM()).isLessThan(ExpertGemm.TILE);
        assertThat(found.forTokens(4096).blockSizeM()).isEqualTo(ExpertGemm.TILE);
    }

    @Test
    void aFileChangesWhatIsLaunchedAndNotTheResult() throws IOException {
        assertThat(space().key().fileName())
                .matches("E=5,N=70,device_name=[^,]+,dtype=int8_w8a8,backend=interpreter,kernel=panels\\.json");
        try (Int8Experts int8 = Int8Quantizer.quantize(LAYER, SCHEME, Progress.NONE);
                TornadoMoeKernel byRule = (TornadoMoeKernel) experts.load(LAYER.config(), int8)) {
            // For the rule 4 tokens are few and 40 many; here it is the other way round from 20 on.
            write(LaunchConfigs.toJson("5.2.0", new TreeMap<>(Map.of(4, PANELS.get(1), 35, PANELS.get(0)))));
            try (TornadoMoeKernel tuned = (TornadoMoeKernel) experts.load(LAYER.config(), int8)) {
                for (int tokens : new int[] {4, 40, 19, 20, 1}) {
                    assertThat(forward(tuned, tokens)).as("%d tokens", tokens).isEqualTo(forward(byRule, tokens));
                    boolean many = tokens < 20;
                    assertThat(groups(tuned, "gateUpMany") > 1)
                            .as("%d tokens", tokens)
                            .isEqualTo(many);
                    assertThat(groups(tuned, "gateUpFew") > 1).isEqualTo(!many);
                    assertThat(groups(byRule, "downMany") > 1).isEqualTo(tokens > 15);
                }
                // Where something is tried, that is what is launched, whatever the file says.
                float[] expected = forward(tuned, 4);
                float[] tried = LaunchConfigs.override(PANELS.get(0), () -> forward(tuned, 4));
                assertThat(tried).isEqualTo(expected);
                assertThat(groups(tuned, "gateUpMany")).isEqualTo(1);
                forward(tuned, 4);
                assertThat(groups(tuned, "gateUpMany")).isGreaterThan(1);
            }
        }
    }

    @Test
    void aFileThatNoKernelServesIsRefused() throws IOException {
        try (Int8Experts int8 = Int8Quantizer.quantize(LAYER, SCHEME, Progress.NONE)) {
            String valid = LaunchConfigs.toJson("5.2.0", new TreeMap<>(Map.of(16, PANELS.get(0))));
            write(valid.replace("\"BLOCK_SIZE_M\" : 8", "\"BLOCK_SIZE_M\" : 64"));
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> experts.load(LAYER.config(), int8))
                    .withMessage(folder.resolve(space().key().fileName())
                            + ": '16': 'BLOCK_SIZE_M': expected one of [8, 16], got 64");
        }
    }

    @Test
    void whereBatchesAreInvariantNoFileIsRead() throws IOException {
        write("nonsense");
        FusedMoeConfig invariant =
                LAYER.config().toBuilder().batchInvariant(true).build();
        assertThat(experts.launches(invariant, SCHEME.weightKey(), SCHEME.activationKey()))
                .isNull();
        try (Int8Experts int8 = Int8Quantizer.quantize(LAYER, SCHEME, Progress.NONE)) {
            experts.load(invariant, int8).close();
        }
    }
}
