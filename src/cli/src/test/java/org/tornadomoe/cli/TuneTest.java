package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.assertj.core.api.InstanceOfAssertFactories;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.tuning.LaunchConfigs;
import tools.jackson.jr.ob.JSON;

class TuneTest {
    @TempDir
    Path folder;

    @AfterEach
    void clearFolder() {
        System.clearProperty(LaunchConfigs.FOLDER_PROPERTY);
    }

    private Ran tune(Object... options) {
        List<Object> args =
                new ArrayList<>(List.of("tune", "--backend", "triton", "--kernel", "TornadoPanelExperts", "--runs", 1));
        args.addAll(List.of("--seconds", 0.01, "--output", folder));
        args.addAll(Arrays.asList(options));
        return moe(args.toArray());
    }

    private Path onlyFile() throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            List<Path> all = files.toList();
            assertThat(all).hasSize(1);
            return all.getFirst();
        }
    }

    @Test
    void theFastestIsWrittenAndLayersAreLaunchedSo() throws IOException {
        Ran ran = tune("--shape", "tiny", "--tokens", "5,1", "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.err()).contains("moe: 2 of 2 token counts").contains("left; 5 tokens: {BLOCK_SIZE_M=");
        Path file = onlyFile();
        assertThat(ran.json())
                .containsEntry("kernelClass", "TornadoPanelExperts")
                .containsEntry("file", file.toString())
                .containsEntry("left", List.of());
        Map<String, Object> written = JSON.std.mapFrom(Files.readString(file));
        assertThat(written).containsOnlyKeys("tornadovm_version", "1", "5");
        for (Map<?, ?> row : ran.list("rows")) {
            assertThat(row)
                    .extracting("measured", InstanceOfAssertFactories.LIST)
                    .hasSize(2)
                    .allSatisfy(one -> assertThat(one)
                            .asInstanceOf(InstanceOfAssertFactories.MAP)
                            .containsKey("microseconds")
                            .doesNotContainKey("problem"));
            assertThat(written.get(String.valueOf(row.get("tokens")))).isEqualTo(row.get("best"));
        }
        System.setProperty(LaunchConfigs.FOLDER_PROPERTY, folder.toString());
        Ran explained = moe(
                "explain",
                "--experts",
                8,
                "--top-k",
                2,
                "--hidden",
                128,
                "--intermediate",
                192,
                "--tokens",
                9,
                "--backend",
                "triton",
                "--json");
        assertThat(explained.list("candidates"))
                .filteredOn(candidate -> "TornadoPanelExperts".equals(candidate.get("kernelClass")))
                .first()
                .extracting("launch", InstanceOfAssertFactories.MAP)
                .containsEntry("source", file.toString())
                .containsEntry("file", file.getFileName().toString())
                .extracting("fromTokens", InstanceOfAssertFactories.MAP)
                .containsEntry("1", written.get("1"));
    }

    @Test
    void whatIsThereIsNotMeasuredAgain() throws IOException {
        tune("--shape", "tiny", "--tokens", 2);
        Path file = onlyFile();
        String first = Files.readString(file);
        Ran ran = tune("--shape", "tiny", "--tokens", "2,3", "--json");
        assertThat(ran.json()).containsEntry("alreadyThere", List.of(2));
        assertThat(ran.list("rows")).hasSize(1).first().extracting("tokens").isEqualTo(3);
        Map<String, Object> written = JSON.std.mapFrom(Files.readString(file));
        assertThat(written).containsOnlyKeys("tornadovm_version", "2", "3");
        assertThat(written.get("2")).isEqualTo(JSON.std.mapFrom(first).get("2"));
        assertThat(tune("--shape", "tiny", "--tokens", 2, "--anew", "--json").list("rows"))
                .hasSize(1);
        assertThat(JSON.std.mapFrom(Files.readString(file)).keySet()).isEqualTo(Set.of("tornadovm_version", "2", "3"));
    }

    @Test
    void whatThereWasNoTimeForIsLeft() throws IOException {
        Ran ran = tune("--shape", "tiny", "--tokens", "1,2", "--minutes", 1e-9);
        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.out()).contains("Out of time; not measured: [1, 2]. The same command continues.");
        assertThat(folder).isEmptyDirectory();
    }

    @Test
    void aCheckpointsLayerIsTuned() throws IOException {
        Ran ran = tune(Ran.GOLDEN.resolve("hf/deepseek_v3"), "--tokens", 3);
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.out()).contains("TAKEN", "rule", "In " + onlyFile());
    }

    @Test
    void whatCannotBeTunedIsRefused() throws IOException {
        moe("tune", "--shape", "tiny", "--backend", "cpu")
                .assertRefused("CpuExperts has only one launch configuration for this layer: there is nothing to tune");
        moe("tune").assertRefused("CHECKPOINT", "--shape");
        moe("tune", "--shape", "tiny", Ran.GOLDEN).assertRefused("golden");
        tune("--shape", "big").assertRefused("--shape: expected one of [mixtral-8x7b, ");
        tune("--shape", "tiny", "--tokens", "0").assertRefused("--tokens: expected positive numbers, got 0");
        tune("--shape", "tiny", "--minutes", "0").assertRefused("--minutes: expected a positive number, got 0.0");
        moe("tune", "--shape", "tiny", "--runs", "0").assertRefused("--runs: expected a positive number, got 0");
        moe("tune", "--shape", "tiny", "--seconds", "-1")
                .assertRefused("--seconds: expected a positive number, got -1.0");
        Path none = Files.createFile(folder.resolve("file"));
        moe("tune", "--shape", "tiny", "--output", none).assertRefused("--output: expected a folder, got " + none);
        Files.delete(none);
        moe("tune", "--shape", "tiny", "--backend", "cpu", "--output", folder.resolve("none"))
                .assertRefused("there is nothing to tune");
        assertThat(folder.resolve("none")).doesNotExist();
        tune("--shape", "tiny", "--tokens", 2);
        Path file = onlyFile();
        Files.writeString(file, "{");
        Ran ran = tune("--shape", "tiny", "--tokens", 2);
        assertThat(ran.status()).isEqualTo(Moe.BAD_INPUT);
        assertThat(ran.err()).contains("moe: " + file + ": is not valid JSON");
        assertThat(ran.out()).isEmpty();
    }
}
