package org.tornadomoe.cli;

import static java.lang.foreign.ValueLayout.JAVA_INT;

import java.io.PrintWriter;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.Printable;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.parallel.ExpertBalance;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;
import tools.jackson.jr.ob.JSON;

/** The output of every command: a result, as text or as JSON. */
final class Output {
    @Spec(Spec.Target.MIXEE)
    CommandSpec spec;

    @Option(names = "--json", description = "Print the result as one JSON object.")
    boolean json;

    /** Prints the result. Numbers in {@code fields} that are not finite become null: JSON has none. */
    void print(Map<String, ?> fields, String text) {
        PrintWriter out = spec.commandLine().getOut();
        out.println(Printable.visible(
                json ? JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES).asString(finite(fields)) : text));
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

    /** Bytes in the unit that suits them. */
    static String bytes(long bytes) {
        String[] units = {"bytes", "KiB", "MiB", "GiB", "TiB"};
        double value = bytes;
        int unit = 0;
        for (; value >= 1024 && unit < units.length - 1; unit++) {
            value /= 1024;
        }
        return unit == 0 ? bytes + " bytes" : String.format(Locale.ROOT, "%.1f %s", value, units[unit]);
    }

    /** What a layer takes of a device. */
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

    /** How a layer's experts lie after its calls, and what its devices have had to do. */
    static String balance(ExpertBalance balance) {
        boolean counted = balance.loads().stream().anyMatch(load -> load > 0);
        return balance.rearrangements()
                + (balance.rearrangements() == 1 ? " rearrangement" : " rearrangements")
                + (counted
                        ? ", loads of the devices " + balance.loads()
                                + String.format(Locale.ROOT, ", balancedness %.3f", balance.balancedness())
                        : ", no load counted")
                + (balance.refusal() == null ? "" : "; the last one that was due was refused: " + balance.refusal());
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

    /** A time in the unit that suits it. */
    static String seconds(double seconds) {
        return seconds >= 1
                ? String.format(Locale.ROOT, "%.2f s", seconds)
                : seconds >= 1e-3
                        ? String.format(Locale.ROOT, "%.2f ms", seconds * 1e3)
                        : String.format(Locale.ROOT, "%.1f us", seconds * 1e6);
    }

    /** A small number to three digits; a whole one as it is. */
    static String number(double value) {
        return value == Math.rint(value) && Math.abs(value) < 1e6
                ? Long.toString((long) value)
                : String.format(Locale.ROOT, "%.2e", value);
    }

    /** Tells of something on standard error, on one line. */
    static void say(CommandSpec spec, String line) {
        spec.commandLine().getErr().println(Printable.message("moe: " + line));
    }

    /** Whether somebody watches standard error; {@link System#console} tells of the other two. */
    @SuppressWarnings("restricted") // the C library's isatty
    static boolean errorIsTerminal() {
        Linker linker = Linker.nativeLinker();
        return linker.defaultLookup()
                .find("isatty")
                .map(isatty -> {
                    try {
                        return (int) linker.downcallHandle(isatty, FunctionDescriptor.of(JAVA_INT, JAVA_INT))
                                        .invokeExact(2)
                                == 1;
                    } catch (Throwable failure) {
                        return false;
                    }
                })
                .orElse(false);
    }
}
