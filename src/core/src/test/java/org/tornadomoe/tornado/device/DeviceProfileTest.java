package org.tornadomoe.tornado.device;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Objects;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.FieldSource;

class DeviceProfileTest {
    private static final String WHOLE = "name=A GPU\nmemory=16GB\nmaxGroup=256\nbackends=opencl\n";

    @Test
    void everyFileIsAmongTheNames() throws IOException {
        try (Stream<Path> files = Files.list(Path.of("tornado-config/devices"))) {
            assertThat(files.map(file -> file.getFileName().toString()).sorted())
                    .containsExactlyElementsOf(DeviceProfile.NAMES.stream()
                            .map(name -> name + ".properties")
                            .toList());
        }
    }

    @ParameterizedTest
    @FieldSource("org.tornadomoe.tornado.device.DeviceProfile#NAMES")
    void everyProfileIsAHome(String name) {
        TornadoHome home = DeviceProfile.home(name);
        assertThat(home.kind()).isEqualTo(TornadoHome.Kind.PROFILE);
        assertThat(home.devices()).isNotEmpty().allSatisfy(device -> {
            assertThat(device.memory()).isGreaterThan(12L << 30);
            assertThat(device.unusable()).isNull();
            assertThat(device.isBesideTheCpu()).isTrue();
            boolean nvidias = device.is(Device.CUDA) || device.is(Device.PTX);
            assertThat(device.lacksDp4a() == null).isEqualTo(nvidias);
            assertThat(device.lacksInt8Mma() == null).isEqualTo(nvidias);
            assertThatThrownBy(device::tornado).isInstanceOf(IllegalStateException.class);
        });
    }

    @Test
    void itIsTheHomeWhereItIsAssumedAndNowhereElse() {
        TornadoHome before = TornadoHome.current();
        TornadoHome profile = DeviceProfile.home("h100");
        assertThat(profile.<TornadoHome, RuntimeException>assuming(TornadoHome::current))
                .isSameAs(profile);
        assertThat(TornadoHome.current()).isSameAs(before);
        Device best = Objects.requireNonNull(profile.find(null));
        assertThat(best).hasToString("cuda:0 (NVIDIA H100 80GB HBM3)");
        assertThat(best.computeCapability()).isEqualTo(90);
        assertThat(profile.find("opencl:7")).isNotNull();
        assertThat(profile.find("opencl:8")).isNull();
    }

    @Test
    void aFileOfOnesOwn(@TempDir Path folder) throws IOException {
        TornadoHome home = DeviceProfile.home(
                Files.writeString(folder.resolve("own.properties"), WHOLE).toString());
        assertThat(home.devices()).extracting(Device::toString).isEqualTo(List.of("opencl:0 (A GPU)"));
        assertThat(home.devices().getFirst().memory()).isEqualTo(16L << 30);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
        name=A GPU     |                   | name: expected a value, got none
        memory=16GB    | memory=many       | memory: expected a size such as 40GB, got 'many'
        maxGroup=256   | maxGroup=0        | maxGroup: expected a number from 1 on, got '0'
        backends=opencl | backends=hip     | backends: expected some of cuda, ptx and opencl, got 'hip'
        backends=opencl | backend=opencl   | backend: expected one of [backends,
        backends=opencl | backends=cuda\\ncomputeCapability=9 | computeCapability: expected one such as 9.0, got '9'
        """)
    void whatIsWrongIsNamed(String right, String wrong, String message, @TempDir Path folder) throws IOException {
        String text = WHOLE.replace(right, wrong == null ? "" : wrong.replace("\\n", "\n"));
        Path file = Files.writeString(folder.resolve("own.properties"), text);
        assertThatThrownBy(() -> DeviceProfile.home(file.toString()))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageStartingWith("device profile " + file + ": " + message);
    }

    @Test
    void anUnknownNameIsAnsweredWithThoseThereAre() {
        assertThatThrownBy(() -> DeviceProfile.home("gfx943"))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("device profile: expected one of " + DeviceProfile.NAMES + " or a file, got 'gfx943'");
    }
}
