package org.tornadomoe.cli;

import java.io.PrintWriter;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.Printable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.parallel.ExpertBalance;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;
import tools.jackson.jr.ob.JSON;

/** The output of every command: a result, as text or as JSON. */
final class Output {
    private static final int DEFAULT_WIDTH = 100;
    private static final int MIN_WIDTH = 60;

    /** The minimum width of a wrapped column. */
    private static final int NARROWEST = 20;

    private static final int FACT_NAME = 11;

    @Spec(Spec.Target.MIXEE)
    CommandSpec spec;

    @Option(names = "--json", description = "Print the result as one JSON object.")
    boolean json;

    /** Prints a line before the result; not with {@code --json}. Notes come first. */
    void fact(String name, String value) {
        tellNotes();
        if (!json) {
            spec.commandLine().getOut().println(Printable.visible(pad(name, FACT_NAME) + value));
        }
    }

    private void tellNotes() {
        List<String> notes = moe(spec).notes;
        notes.forEach(note -> say(spec, note));
        notes.clear();
    }

    /**
     * Prints the result without the facts already printed. Numbers in {@code fields} that are not finite become null:
     * JSON has none.
     */
    void print(Map<String, ?> fields, String text) {
        tellNotes();
        if (json || !text.isEmpty()) {
            PrintWriter out = spec.commandLine().getOut();
            out.println(Printable.visible(
                    json ? JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES).asString(finite(fields)) : text));
        }
    }

    private static @Nullable Object finite(@Nullable Object value) {
        return switch (value) {
            case null -> null;
            case Double d when !Double.isFinite(d) -> null;
            case Map<?, ?> map -> {
                Map<Object, @Nullable Object> copy = new LinkedHashMap<>();
                map.forEach((key, inner) -> copy.put(key, finite(inner)));
                yield copy;
            }
            case List<?> list -> {
                List<@Nullable Object> copy = new ArrayList<>();
                list.forEach(inner -> copy.add(finite(inner)));
                yield copy;
            }
            default -> value;
        };
    }

    /** Rows of cells in aligned columns. */
    static String table(List<List<String>> rows) {
        int columns = rows.stream().mapToInt(List::size).max().orElse(0);
        int[] widths = new int[columns];
        for (List<String> row : rows) {
            for (int c = 0; c < row.size(); c++) {
                widths[c] = Math.max(widths[c], row.get(c).length());
            }
        }
        List<String> lines = new ArrayList<>();
        for (List<String> row : rows) {
            StringBuilder line = new StringBuilder();
            for (int c = 0; c < row.size(); c++) {
                line.append(row.get(c)).repeat(' ', widths[c] - row.get(c).length() + 2);
            }
            lines.add(line.toString().stripTrailing());
        }
        return String.join(System.lineSeparator(), lines);
    }

    /** The same, with the last column wrapped at a width where words allow it. */
    static String table(List<List<String>> rows, int width) {
        int last = rows.stream().mapToInt(List::size).max().orElse(0) - 1;
        int before = IntStream.range(0, Math.max(0, last))
                .map(c -> rows.stream()
                                .filter(row -> c < row.size())
                                .mapToInt(row -> row.get(c).length())
                                .max()
                                .orElse(0)
                        + 2)
                .sum();
        List<List<String>> wrapped = new ArrayList<>();
        for (List<String> row : rows) {
            if (row.size() <= last) {
                wrapped.add(row);
                continue;
            }
            List<String> start = row.subList(0, last);
            for (String line : wrap(row.get(last), width - before)) {
                List<String> cells = new ArrayList<>(start);
                cells.add(line);
                wrapped.add(cells);
                start = Collections.nCopies(last, "");
            }
        }
        return table(wrapped);
    }

    /** Lines of at most {@code width} characters, where words allow it; at least one line. */
    static List<String> wrap(String text, int width) {
        List<String> lines = new ArrayList<>();
        StringBuilder line = new StringBuilder();
        for (String word : text.split(" ", 0)) {
            if (!line.isEmpty() && line.length() + 1 + word.length() > Math.max(width, NARROWEST)) {
                lines.add(line.toString());
                line.setLength(0);
            }
            line.append(line.isEmpty() ? "" : " ").append(word);
        }
        lines.add(line.toString());
        return lines;
    }

    private static String pad(String text, int width) {
        return text + " ".repeat(Math.max(1, width - text.length()));
    }

    /** The terminal's number of columns, or a default without one. */
    int width() {
        return width(moe(spec).environment);
    }

    /** The same, by {@code COLUMNS}. */
    static int width(Map<String, String> environment) {
        try {
            return Math.max(
                    MIN_WIDTH,
                    Integer.parseInt(environment.getOrDefault("COLUMNS", "").strip()));
        } catch (NumberFormatException none) {
            return DEFAULT_WIDTH;
        }
    }

    private static Moe moe(CommandSpec spec) {
        return (Moe) spec.root().userObject();
    }

    /** The device's id in a kernel class's description such as {@code cuda:0 (NVIDIA H100)}. */
    static String deviceId(String device) {
        return device.replaceFirst(" \\(.*", "");
    }

    /** Bytes in a suitable unit. */
    static String bytes(long bytes) {
        String[] units = {"bytes", "KiB", "MiB", "GiB", "TiB"};
        double value = bytes;
        int unit = 0;
        for (; value >= 1024 && unit < units.length - 1; unit++) {
            value /= 1024;
        }
        return unit == 0 ? bytes + " bytes" : String.format(Locale.ROOT, "%.1f %s", value, units[unit]);
    }

    /** A layer's sizes and activation as fields. */
    static Map<String, Object> json(FusedMoeConfig config) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("experts", config.numExperts());
        json.put("topK", config.expertsPerToken());
        json.put("sharedExperts", config.numFusedSharedExperts());
        json.put("hidden", config.hiddenDim());
        json.put("intermediate", config.intermediateSize());
        json.put("activation", config.activation().toString());
        return json;
    }

    /** The device memory of a layer. */
    static String memory(DeviceMemory memory) {
        return String.format(
                Locale.ROOT,
                "%s of weights, %.3f times their int8 values, and %s of workspace",
                bytes(memory.weights()),
                memory.overhead(),
                bytes(memory.workspace()));
    }

    /** The same as fields. */
    static @Nullable Map<String, Long> json(@Nullable DeviceMemory memory) {
        if (memory == null) {
            return null;
        }
        Map<String, Long> json = new LinkedHashMap<>();
        json.put("int8", memory.int8());
        json.put("weights", memory.weights());
        json.put("workspace", memory.workspace());
        return json;
    }

    /** The placement of a layer's experts after its calls, and its devices' loads. */
    static String balance(ExpertBalance balance) {
        boolean counted = balance.loads().stream().anyMatch(load -> load > 0);
        return balance.rearrangements()
                + (balance.rearrangements() == 1 ? " rearrangement" : " rearrangements")
                + (counted
                        ? ", device loads " + balance.loads()
                                + String.format(Locale.ROOT, ", balancedness %.3f", balance.balancedness())
                        : ", no load counted")
                + (balance.refusal() == null ? "" : "; the last one was refused: " + balance.refusal());
    }

    /** The same as fields. */
    static @Nullable Map<String, @Nullable Object> json(@Nullable ExpertBalance balance) {
        if (balance == null) {
            return null;
        }
        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("rearrangements", balance.rearrangements());
        json.put("experts", balance.experts());
        json.put("loads", balance.loads());
        json.put("balancedness", balance.balancedness());
        json.put("refusal", balance.refusal());
        return json;
    }

    /** A time in a suitable unit. */
    static String seconds(double seconds) {
        return seconds >= 1
                ? String.format(Locale.ROOT, "%.2f s", seconds)
                : seconds >= 1e-3
                        ? String.format(Locale.ROOT, "%.2f ms", seconds * 1e3)
                        : String.format(Locale.ROOT, "%.1f us", seconds * 1e6);
    }

    /** A small number with three digits; an integer unchanged. */
    static String number(double value) {
        return value == Math.rint(value) && Math.abs(value) < 1e6
                ? Long.toString((long) value)
                : String.format(Locale.ROOT, "%.2e", value);
    }

    /** Prints one line on standard error at once. */
    static void say(CommandSpec spec, String line) {
        spec.commandLine().getErr().println(Printable.message("moe: " + line));
    }

    /** Prints a note together with the result, if there is a result. */
    static void note(CommandSpec spec, String line) {
        moe(spec).notes.add(line);
    }

    /** Whether standard error is a terminal, as the launcher found. */
    static boolean errorIsTerminal() {
        return "1".equals(System.getProperty("tornadomoe.terminal"));
    }
}
