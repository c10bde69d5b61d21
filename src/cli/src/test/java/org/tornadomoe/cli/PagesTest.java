package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import picocli.CommandLine;
import picocli.CommandLine.Help.Ansi;

/** Runs the commands that pages show, follows their links, and compares the command's reference with the command. */
class PagesTest {
    private static final Path REFERENCE = Path.of("docs/command-reference.md");
    private static final Pattern LINK = Pattern.compile("\\]\\(([^)#\\s]+)(?:#[^)]*)?\\)");

    private static List<Path> pages() throws IOException {
        List<Path> pages = new ArrayList<>(List.of(Path.of("README.md"), Path.of("CONTRIBUTING.md")));
        try (Stream<Path> docs = Files.list(Path.of("docs"))) {
            docs.filter(page -> page.toString().endsWith(".md")).sorted().forEach(pages::add);
        }
        return pages;
    }

    /** The launcher's commands in the pages, a line each, without those marked as needing a GPU. */
    static List<String> commands() throws IOException {
        List<String> commands = new ArrayList<>();
        for (Path page : pages()) {
            for (String line :
                    Files.readString(page).replaceAll("\\\\\n\\s+", "").lines().toList()) {
                if (line.startsWith("    ") && line.contains("./moe ") && !line.matches(".*# .*GPUs?")) {
                    commands.add(line.strip().replaceFirst("\\s+# .*", ""));
                }
            }
        }
        return commands.stream().distinct().toList();
    }

    @ParameterizedTest
    @MethodSource("commands")
    void commandsDoWhatPagesShow(String command) throws IOException {
        assertThat(command).as("started by the launcher alone").startsWith("./moe ");
        Files.createDirectories(Path.of("target")); // exists already if anything was built
        Ran ran = moe((Object[]) command.replaceFirst("\\./moe ", "").split(" +", 0));
        assertThat(ran.status()).as(command + "\n" + ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.out()).isNotEmpty();
    }

    /** The transcript under a command is what it prints, except figures and this machine's names. */
    @Test
    void transcriptsAreOfToday() throws IOException {
        Matcher shown = Pattern.compile("(?m)^ {4}\\./moe (run .*)\n\n((?: {4}\\S.*\n| {4} .*\n)+)")
                .matcher(Files.readString(Path.of("docs/getting-started.md")));
        assertThat(shown.find()).isTrue();
        Ran ran = moe((Object[]) (shown.group(1) + " --seconds 0.1").split(" +", 0));
        List<String> printed = ran.out().lines().toList();
        List<String> page =
                shown.group(2).lines().map(line -> line.substring(4)).toList();
        assertThat(page.stream().map(line -> line.substring(0, 11)))
                .containsExactlyElementsOf(
                        printed.stream().map(line -> line.substring(0, 11)).toList());
        for (String fixed : List.of("layer", "  ", "scheme", "backend", "error")) {
            assertThat(page.stream().filter(line -> line.startsWith(fixed)))
                    .containsExactlyElementsOf(printed.stream()
                            .filter(line -> line.startsWith(fixed))
                            .toList());
        }
    }

    @Test
    void linksLeadSomewhere() throws IOException {
        List<String> dead = new ArrayList<>();
        for (Path page : pages()) {
            Matcher links = LINK.matcher(Files.readString(page));
            while (links.find()) {
                String to = links.group(1);
                Path beside = page.toAbsolutePath().resolveSibling(to);
                if (!to.startsWith("http") && !Files.exists(beside)) {
                    dead.add(page + ": " + to);
                }
            }
        }
        assertThat(dead).isEmpty();
    }

    @Test
    void theIndexHasEveryPage() throws IOException {
        String index = Files.readString(Path.of("docs/README.md"));
        for (Path page : pages()) {
            if (page.startsWith("docs") && !page.endsWith("README.md")) {
                assertThat(index).contains("](" + page.getFileName() + ")");
            }
        }
    }

    /** Except rows of tables and addresses. */
    @Test
    void linesOfPagesEndAt120Columns() throws IOException {
        for (Path page : pages()) {
            assertThat(Files.readAllLines(page).stream()
                            .filter(line -> line.length() > 120 && !line.startsWith("|") && !line.contains("](http")))
                    .as(page.toString())
                    .isEmpty();
        }
    }

    @Test
    void theReferenceIsWhatTheCommandSays() throws IOException {
        String generated = reference();
        if (Boolean.getBoolean("pages.apply")) {
            Files.writeString(REFERENCE, generated);
        }
        assertThat(REFERENCE)
                .as("written by: ./mvnw -pl src/cli -am test -Dtest=PagesTest -Dpages.apply=true")
                .hasContent(generated);
    }

    private static String reference() {
        StringBuilder page = new StringBuilder("""
            # Command reference

            What `moe help COMMAND` prints, written by `PagesTest`. [The command](command.md) says what all commands
            have in common.
            """);
        CommandLine moe = Moe.commandLine();
        List<CommandLine> commands = new ArrayList<>(List.of(moe));
        commands.addAll(moe.getSubcommands().values());
        for (CommandLine command : commands) {
            page.append("\n## ")
                    .append(command.getCommandSpec().qualifiedName())
                    .append("\n\n");
            command.setUsageHelpWidth(110);
            command.getUsageMessage(Ansi.OFF)
                    .stripTrailing()
                    .lines()
                    .map(line -> line.isBlank() ? "" : "    " + line.stripTrailing())
                    .forEach(line -> page.append(line).append('\n'));
        }
        return page.toString();
    }

    /** Commands in the pages write into the checkout only under target. */
    @Test
    void whatCommandsWriteIsUnderTarget() throws IOException {
        for (String command : commands()) {
            Matcher file = Pattern.compile("--(?:output|plot) (\\S+)").matcher(command);
            while (file.find()) {
                assertThat(file.group(1)).as(command).startsWith("target/");
            }
        }
    }
}
