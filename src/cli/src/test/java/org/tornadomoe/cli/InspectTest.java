package org.tornadomoe.cli;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.InstanceOfAssertFactories.STRING;
import static org.tornadomoe.cli.Ran.GOLDEN;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.Tensor;

class InspectTest {
    private static final Path Q4_K = Path.of("src/test/resources/cases/gguf-q4_k/model.gguf");

    @TempDir
    Path directory;

    @Test
    void aLayersTypesSchemeAndMemoryAreTold() throws IOException {
        Ran ran = moe("inspect", Q4_K, "--backend", "cpu", "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.json())
                .containsEntry("modelType", "qwen3_moe")
                .containsEntry("format", "GGUF")
                .containsEntry("layers", 1)
                .containsEntry("unread", List.of());
        Map<?, ?> layer = ran.list("moeLayers").getFirst();
        // E 4, H 256, I 256: 144 bytes of 256 elements; a router in F32
        int elements = 4 * 3 * 256 * 256;
        assertThat(layer.get("stored")).isEqualTo(Map.of("Q4_K", elements / 256 * 144, "F32", 4 * 256 * 4));
        assertThat(layer.get("int8Bytes")).isEqualTo(elements + elements / 32 * 4);
        assertThat(ran.json()).containsEntry("int8Bytes", layer.get("int8Bytes"));
        assertThat(layer.get("scheme")).isEqualTo("w8a16_group");
        assertThat(layer.get("kernelClass")).isEqualTo("CpuExperts");
    }

    @Test
    void aSchemeThatIsAskedForIsTold() throws IOException {
        Ran ran = moe("inspect", Q4_K, "--scheme", "w8a8_channel", "--backend", "triton", "--tokens", 8, "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        Map<?, ?> layer = ran.list("moeLayers").getFirst();
        assertThat(layer.get("scheme")).isEqualTo("w8a8_channel");
        assertThat(ran.number("deviceBytes")).isGreaterThan(4 * 3 * 256 * 256);
    }

    /** Mixtral's layer, the same more than once. */
    private Path mixtral(int layers, int described) throws IOException {
        Path model = Files.createDirectory(directory.resolve("model"));
        Path mixtral = GOLDEN.resolve("hf/mixtral");
        SafetensorsWriter writer = new SafetensorsWriter();
        try (Safetensors tensors = Safetensors.open(mixtral)) {
            for (String name : tensors.names()) {
                Tensor tensor = tensors.tensor(name);
                for (int n = 0; n < (name.contains("layers.0.") ? layers : 1); n++) {
                    String to = name.replace("layers.0.", "layers." + n + ".");
                    writer.add(to, tensor.dtype(), tensor.data(), tensor.shape());
                }
            }
            writer.write(model.resolve("model.safetensors"));
        }
        String config = Files.readString(mixtral.resolve("config.json"));
        Files.writeString(
                model.resolve("config.json"),
                config.replaceFirst("\"num_hidden_layers\": \\d+", "\"num_hidden_layers\": " + described));
        return model;
    }

    @Test
    void everyLayerIsToldInJsonAndThoseAlikeOnceInText() throws IOException {
        Path model = mixtral(3, 3);
        Ran json = moe("inspect", model, "--backend", "cpu", "--json");
        assertThat(json.status()).as(json.err()).isEqualTo(Moe.DONE);
        List<Map<?, ?>> layers = json.list("moeLayers");
        assertThat(layers).hasSize(3);
        double one = ((Number) requireNonNull(layers.getLast().get("int8Bytes"))).doubleValue();
        assertThat(json.number("int8Bytes")).isEqualTo(3 * one);
        Ran text = moe("inspect", model, "--backend", "cpu");
        assertThat(text.out()).contains("mixtral, safetensors", "8, top 2", "w8a8_channel", "CpuExperts");
        assertThat(text.out().lines().filter(line -> line.contains("CpuExperts")))
                .singleElement(STRING)
                .startsWith("0-2 ");
        assertThat(text.err()).isEmpty();
    }

    @Test
    void aLayerThatIsRefusedIsToldWithItsReason() throws IOException {
        Path model = mixtral(1, 2);
        Ran ran = moe("inspect", model, "--backend", "cpu", "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.NO);
        assertThat(ran.list("moeLayers")).hasSize(1);
        Map<?, ?> unread = ran.list("unread").getFirst();
        assertThat(unread.get("layer")).isEqualTo(1);
        assertThat(String.valueOf(unread.get("reason"))).contains("layer 1: the router is missing");
        assertThat(moe("inspect", model, "--backend", "cpu").out()).contains("layer 1 is refused: ");
    }

    /** As huggingface_hub lays it out: blobs, and a folder of links to them for each commit. */
    private static Path cached(Path cache, String commit, Path... files) throws IOException {
        Path model = cache.resolve("models--org--model");
        Path snapshot = Files.createDirectories(model.resolve("snapshots").resolve(commit));
        Files.createDirectories(model.resolve("blobs"));
        for (Path file : files) {
            Path blob = model.resolve("blobs").resolve(Integer.toHexString(file.hashCode()));
            Files.copy(file, blob);
            Files.createSymbolicLink(
                    snapshot.resolve(file.getFileName()), Path.of("../../blobs").resolve(blob.getFileName()));
        }
        return model;
    }

    private static void main(Path model, String commit) throws IOException {
        Files.writeString(Files.createDirectories(model.resolve("refs")).resolve("main"), commit);
    }

    @Test
    void aModelOfHuggingFacesCacheIsFoundByItsName() throws IOException {
        Path mixtral = GOLDEN.resolve("hf/mixtral");
        Path cache = directory.resolve("hub");
        Path model = cached(cache, "abc", mixtral.resolve("config.json"), mixtral.resolve("model.safetensors"));
        Files.createDirectories(model.resolve("snapshots/older"));
        main(model, "abc");
        for (Map<String, String> environment : List.of(
                Map.of("HF_HUB_CACHE", cache.toString(), "HF_HOME", "/nowhere", "HOME", "/nowhere"),
                Map.of("HF_HOME", directory.toString(), "HOME", "/nowhere"))) {
            Ran ran = moe(environment, "inspect", "org/model", "--backend", "cpu", "--json");
            assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
            assertThat(ran.json())
                    .containsEntry("checkpoint", "org/model")
                    .containsEntry("path", model.resolve("snapshots/abc").toString())
                    .containsEntry("modelType", "mixtral");
        }
        Map<String, String> environment = Map.of("HF_HUB_CACHE", cache.toString());
        Path golden = mixtral.resolve("golden.safetensors");
        assertThat(moe(environment, "verify", "org/model", "--golden", golden, "--backend", "cpu")
                        .status())
                .isEqualTo(Moe.DONE);
        assertThat(moe(environment, "explain", "--checkpoint", "org/model", "--backend", "cpu")
                        .status())
                .isEqualTo(Moe.DONE);
        assertThat(moe(environment, "quantize", "org/model", directory.resolve("out"))
                        .status())
                .isEqualTo(Moe.DONE);
    }

    @Test
    void theCacheLiesInTheHomeFolder() throws IOException {
        Path cache = directory.resolve(".cache/huggingface/hub");
        cached(cache, "abc", Q4_K); // no refs: the only one
        Ran ran = moe(Map.of("HOME", directory.toString()), "inspect", "org/model", "--backend", "cpu", "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(String.valueOf(ran.json().get("path"))).endsWith("snapshots/abc/model.gguf");
        Ran file = moe(Map.of("HOME", directory.toString()), "inspect", "org/model/model.gguf", "--backend", "cpu");
        assertThat(file.status()).as(file.err()).isEqualTo(Moe.DONE);
    }

    @Test
    void whatTheCacheLacksIsNamed() throws IOException {
        Path cache = Files.createDirectory(directory.resolve("hub"));
        Map<String, String> environment = Map.of("HF_HUB_CACHE", cache.toString());
        moe(environment, "inspect", "org/model").assertRefused("org/model: no such checkpoint", "models--org--model");
        Path model = cached(cache, "abc", Q4_K);
        main(model, "../../elsewhere");
        moe(environment, "inspect", "org/model").assertRefused("refs/main", "'../../elsewhere'");
        Files.delete(model.resolve("refs/main"));
        Files.createDirectory(model.resolve("snapshots/def"));
        moe(environment, "inspect", "org/model").assertRefused("expected one snapshot", "found 2");
        Files.delete(model.resolve("snapshots/def"));
        Files.copy(Q4_K, model.resolve("snapshots/abc/other.gguf"));
        moe(environment, "inspect", "org/model").assertRefused("expected one model", "model.gguf, other.gguf");
        moe(environment, "inspect", "../model").assertRefused("no such checkpoint");
        moe("inspect", "org/model").assertRefused("org/model");
    }

    @Test
    void aDeviceWithBracketsInItsNameIsNamedByItsIdAlone() {
        assertThat(Output.deviceId("opencl:0 (cpu-Intel(R) Xeon(R) Gold)")).isEqualTo("opencl:0");
        assertThat(Output.deviceId("cpu (512-bit vectors, 2 threads)")).isEqualTo("cpu");
        assertThat(Output.deviceId("cpu")).isEqualTo("cpu");
    }
}
