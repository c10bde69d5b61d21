package org.tornadomoe.cli;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.junit.jupiter.api.Assumptions.assumeTrue;
import static org.tornadomoe.cli.Ran.moe;

import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.tornado.device.TornadoHome;

/** The command as a whole, {@code devices}, and the way from one home of TornadoVM's API to the next. */
class MoeTest {
    @TempDir
    Path directory;

    private static final Map<String, String> FROM_LAUNCHER = Map.of("MOE_LAUNCHER", "1");

    @Test
    void unknownCommandsListTheKnown() {
        moe().assertRefused("devices, run, verify");
        moe("fly").assertRefused("'fly'", "devices, run, verify");
        moe("rnu").assertRefused("'rnu'; did you mean 'run'?");
    }

    @ParameterizedTest
    @CsvSource({
        "--tokns 3, --tokens",
        "--kernal=CpuExperts, --kernel",
        "--backend refernce, reference",
        "--scheme w8a8_chanel, w8a8_channel",
        "--scheme W8A16-CHANNEL, w8a16_channel",
        "--parallel tensors, tensor",
        "--kernel CpuExpert, CpuExperts",
        "--device interpreter0, interpreter:0",
    })
    void whatIsMistypedIsSuggested(String options, String meant) {
        List<Object> args = new ArrayList<>(List.of("run", Ran.GOLDEN.resolve("hf/mixtral")));
        args.addAll(List.of(options.split(" ")));
        moe(args.toArray()).assertRefused("did you mean '" + meant + "'?");
    }

    @Test
    void aDeviceThatIsNotHereIsRefusedWithTheReason() {
        for (String command : List.of("run", "quantize")) {
            assertThat(moe("help", command).status()).isEqualTo(Moe.DONE);
        }
        Ran ran = moe("run", Ran.GOLDEN.resolve("hf/mixtral"), "--device", "cuda:0");
        if (TornadoHome.current().kind() == TornadoHome.Kind.INTERPRETER) {
            ran.assertRefused("--device: expected one of [interpreter:0, cpu], got 'cuda:0': no TornadoVM SDK");
        }
        moe("run", Ran.GOLDEN.resolve("hf/mixtral"), "--backend", "gpu")
                .assertRefused("--backend: expected auto, triton, cpu or reference, got 'gpu'", "--device");
        moe("run", Ran.GOLDEN.resolve("hf/mixtral"), "--backend", "x")
                .assertRefused("--backend: expected auto, triton, cpu or reference, got 'x'");
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
                .hasSize(13 * ids.size() + 2)
                .extracting(experts -> String.valueOf(experts.get("name")))
                .contains("CpuExperts", "ReferenceExperts");
    }

    @Test
    void linesOfTextFitTheTerminal() {
        Path mixtral = Ran.GOLDEN.resolve("hf/mixtral");
        for (int columns : new int[] {80, 100, 132}) {
            Map<String, String> terminal = Map.of("COLUMNS", Integer.toString(columns));
            for (Ran ran : List.of(
                    moe(terminal, "devices"),
                    moe(terminal, "explain", "--checkpoint", mixtral),
                    moe(terminal, "explain", "--checkpoint", mixtral, "--lora", "--scheme", "w8a8_block"),
                    moe(terminal, "help", "run"))) {
                assertThat(ran.status()).isEqualTo(Moe.DONE);
                assertThat(ran.out().lines())
                        .allSatisfy(line -> assertThat(line).hasSizeLessThanOrEqualTo(columns));
                assertThat(ran.out()).doesNotContain("QuantKey", "GroupShape");
            }
        }
        assertThat(moe("explain", "--checkpoint", mixtral, "--verbose").out()).contains("QuantKey(i8,");
        assertThat(moe("devices", "--verbose").out()).contains("QuantKey(i8,");
    }

    /** What a command does is one whole sentence in the list of all; its own help ends with examples. */
    @Test
    void helpIsWholeSentencesAndExamples() {
        Moe.commandLine().getSubcommands().forEach((name, command) -> {
            String[] header = command.getCommandSpec().usageMessage().header();
            String summary = header.length > 0
                    ? header[0]
                    : command.getCommandSpec().usageMessage().description()[0];
            assertThat(summary).as(name).matches("[A-Z].*\\.");
            if (!name.equals("help")) {
                assertThat(moe(name, "--help").out()).as(name).containsPattern("Examples:\\R  ");
            }
        });
    }

    @Test
    void shellsCompleteWhatThereIs() {
        Ran ran = moe("completion");
        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.out()).contains("complete -F _complete_moe", "quantize", "--tokens", "w8a8_channel");
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
                .isThrownBy(() -> Target.note(none, "auto", FROM_LAUNCHER))
                .withMessage("the SDK failed to start: running on the interpreter");
        assertThatExceptionOfType(Target.NoUseForSdkException.class)
                .isThrownBy(() -> Target.note(none, "triton", FROM_LAUNCHER));
    }

    @Test
    void sdkThatFailsIsOnlyNotedWhereNobodyCanStartAnother() {
        TornadoHome none = home(TornadoHome.Kind.NONE, "the SDK failed to start");

        assertThat(Target.note(none, "auto", Map.of())).isEqualTo("the SDK failed to start");
        assertThat(Target.note(none, "reference", FROM_LAUNCHER)).isEqualTo("the SDK failed to start");
    }

    @Test
    void argumentsAreNotReadFromFiles() throws IOException {
        Path file = Files.writeString(directory.resolve("arguments"), "--version");
        moe("@" + file).assertRefused("'@" + file + "'");
        moe("run", "@" + file).assertRefused("@" + file + ": no such checkpoint");
    }

    @Test
    void escapeSequencesStayOutOfTheTerminal() throws IOException {
        Path file = directory.resolve("a\u001b[2Jb.safetensors");
        new SafetensorsWriter().add("x\u001b[2J", new float[1], 1).write(file);
        Ran ran = moe("verify", "--case", file);
        ran.assertRefused("a\\u001b[2Jb.safetensors");
        assertThat(ran.err()).doesNotContain("\u001b");
        moe("run", "\u001b[2J").assertRefused("\\u001b[2J: no such checkpoint");
        assertThat(moe(Map.of("MOE_DEBUG", "1"), "run", "\u001b[2J").err()).doesNotContain("\u001b");
    }

    @Test
    void longArgumentsAreShortened() {
        Ran ran = moe("run", "--scheme", "x".repeat(100_000), "checkpoint");
        ran.assertRefused("xxx ... (", "--scheme");
        assertThat(ran.err()).hasSizeLessThan(2500);
    }

    @Test
    void standardOutputThatFailsIsAnError() throws IOException {
        Path full = Path.of("/dev/full");
        assumeTrue(Files.isWritable(full));
        for (String command : List.of("devices", "--help", "--version")) {
            StringWriter err = new StringWriter();
            try (PrintStream out = new PrintStream(new FileOutputStream(full.toFile()), false, UTF_8)) {
                int status = Moe.run(new PrintWriter(out, true, UTF_8), new PrintWriter(err), Map.of(), command);
                assertThat(status).as(command).isEqualTo(Moe.BAD_INPUT);
                assertThat(err.toString().lines()).containsExactly("moe: standard output cannot be written");
            }
        }
    }

    /** The JVM reads arguments as the locale says when it starts: a process of its own. */
    @Test
    void aNameThatTheLocaleCannotSpellIsExplained() throws IOException, InterruptedException {
        Path java = Path.of(System.getProperty("java.home"), "bin", "java");
        Path log = directory.resolve("log");
        ProcessBuilder command = new ProcessBuilder(
                        "sh",
                        "-c",
                        "exec \"$0\" -XX:TieredStopAtLevel=1 -cp \"$1\" " + Moe.class.getName()
                                + " run \"$(printf '\\303\\274')\"",
                        java.toString(),
                        System.getProperty("java.class.path"))
                .redirectErrorStream(true)
                .redirectOutput(log.toFile());
        command.environment().put("LC_ALL", "C");
        Process moe = command.start();
        assertThat(moe.waitFor()).isEqualTo(Moe.BAD_INPUT);
        String said = Files.readString(log, StandardCharsets.ISO_8859_1);
        assumeTrue(!said.contains("no such checkpoint"), "this JVM takes names in UTF-8 whatever the locale is");
        assertThat(said).contains("moe run: ", "CHECKPOINT", "LC_ALL=C.UTF-8", "ANSI_X3.4-1968");
    }

    @Test
    void sdkThatWorksNeedsNoWord() {
        assertThat(Target.note(home(TornadoHome.Kind.SDK, null), "auto", FROM_LAUNCHER))
                .isNull();
    }

    private static TornadoHome home(TornadoHome.Kind kind, @Nullable String note) {
        return new TornadoHome(kind, List.of(), Map.of(), note);
    }
}
