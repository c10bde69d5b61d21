package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.tornadomoe.tornado.TornadoHome;

/** The command as a whole, {@code devices}, and the way from one home of TornadoVM's API to the next. */
class MoeTest {
    private static final Map<String, String> FROM_LAUNCHER = Map.of("MOE_LAUNCHER", "1");

    @Test
    void unknownCommandsListTheKnown() {
        moe().assertRefused("devices, run, verify");
        moe("fly").assertRefused("'fly'", "devices, run, verify");
    }

    @Test
    void helpAndVersionAreForStandardOutput() {
        assertThat(moe("--help").status()).isEqualTo(Moe.DONE);
        assertThat(moe("--help").out()).contains("devices", "run", "verify");
        assertThat(moe("run", "--help").out()).contains("--tokens", "--backend", "--json");
        assertThat(moe("--version").out()).startsWith("tornado-moe ");
    }

    @Test
    void stackTracesAreForThoseWhoAsk() {
        assertThat(moe("run", "nowhere").err()).doesNotContain("\tat ");
        Ran asked = moe(Map.of("MOE_DEBUG", "1"), "run", "nowhere");
        assertThat(asked.status()).isEqualTo(Moe.BAD_INPUT);
        assertThat(asked.err()).contains("CheckpointException", "\tat ");
    }

    @Test
    void devicesListsKernelClassesAndWhatTheyLack() throws IOException {
        Ran ran = moe("devices", "--json");

        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.err()).isEmpty();
        assertThat(ran.json()).containsKeys("home", "note", "absentBackends", "chosen");
        List<String> ids = TornadoHome.current().devices().stream()
                .map(device -> device.id())
                .toList();
        assertThat(ran.list("devices"))
                .extracting(device -> String.valueOf(device.get("id")))
                .containsExactlyElementsOf(ids);
        assertThat(ran.list("kernelClasses"))
                .hasSize(7 * ids.size() + 3)
                .extracting(experts -> String.valueOf(experts.get("name")))
                .contains("CpuExperts", "CpuBatchedExperts", "ReferenceExperts");
    }

    @Test
    void devicesAsText() {
        Ran ran = moe("devices");

        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.out()).contains("TornadoPortableExperts", "ReferenceExperts", "w8a8_channel", "runs as");
        TornadoHome.current().devices().forEach(device -> assertThat(ran.out()).contains(device.id(), device.name()));
    }

    @Test
    void sdkThatFailsSendsTheLauncherOn() {
        TornadoHome none = home(TornadoHome.Kind.NONE, "the SDK failed to start");

        assertThatExceptionOfType(Target.NoUseForSdkException.class)
                .isThrownBy(() -> Target.note(none, "auto", FROM_LAUNCHER, null))
                .withMessage("the SDK failed to start: running on the interpreter");
        assertThatExceptionOfType(Target.NoUseForSdkException.class)
                .isThrownBy(() -> Target.note(none, "triton", FROM_LAUNCHER, null));
    }

    @Test
    void sdkThatFailsIsOnlyNotedWhereNobodyCanStartAnother() {
        TornadoHome none = home(TornadoHome.Kind.NONE, "the SDK failed to start");

        assertThat(Target.note(none, "auto", Map.of(), null)).isEqualTo("the SDK failed to start");
        assertThat(Target.note(none, "reference", FROM_LAUNCHER, null)).isEqualTo("the SDK failed to start");
    }

    @Test
    void launcherKnowsBetterWhyTheInterpreterRuns() {
        TornadoHome interpreter = home(TornadoHome.Kind.INTERPRETER, "started without its argument file");

        assertThat(Target.note(interpreter, "auto", Map.of(), null)).isEqualTo("started without its argument file");
        assertThat(Target.note(interpreter, "auto", Map.of(), "no driver")).isEqualTo("no driver");
        assertThat(Target.note(interpreter, "auto", Map.of(), "")).isNull();
    }

    @Test
    void sdkThatWorksNeedsNoWord() {
        assertThat(Target.note(home(TornadoHome.Kind.SDK, null), "auto", FROM_LAUNCHER, null))
                .isNull();
    }

    private static TornadoHome home(TornadoHome.Kind kind, @Nullable String note) {
        return new TornadoHome(kind, List.of(), Map.of(), note);
    }
}
