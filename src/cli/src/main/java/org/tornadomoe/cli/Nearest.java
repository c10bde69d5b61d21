package org.tornadomoe.cli;

import java.util.Collection;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.regex.MatchResult;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/** Finds the name that a mistyped one probably meant. */
final class Nearest {
    /** The expected and the given name, at a message's end: {@code expected one of [a, b], got 'c'}. */
    private static final Pattern EXPECTED = Pattern.compile(
            "[Ee]xpected (?:one of )?(.*?)(?: \\(case-insensitive\\))?" + ",? (?:got|but was) '([^']*)'(?:: .*)?$");

    /** A name among others in a message. */
    private static final Pattern NAME = Pattern.compile("[\\w.:+-]+");

    private Nearest() {}

    /** Adds the probable name to a message that lists the expected names; other messages stay unchanged. */
    static String suggest(String message) {
        Matcher expected = EXPECTED.matcher(message);
        if (!expected.find()) {
            return message;
        }
        List<String> names = Stream.of(
                        expected.group(1).replaceAll("[\\[\\]]", "").split(", | or |; "))
                .flatMap(item -> NAME.matcher(item).results().limit(1).map(MatchResult::group))
                .toList();
        String nearest = of(expected.group(2), names);
        return nearest == null ? message : message + "; did you mean '" + nearest + "'?";
    }

    /**
     * The nearest name, which differs in less than a third of its letters, or in a third if it begins with the same
     * letter; null if none is so near.
     */
    static @Nullable String of(String name, Collection<String> names) {
        String lower = name.toLowerCase(Locale.ROOT);
        return names.stream()
                .filter(other -> distance(lower, other.toLowerCase(Locale.ROOT)) * 3
                        < other.length() + (other.regionMatches(true, 0, lower, 0, 1) ? 1 : 0))
                .min(Comparator.comparingInt(other -> distance(lower, other.toLowerCase(Locale.ROOT))))
                .orElse(null);
    }

    /** The number of letters to insert, delete, replace or swap with the next. */
    private static int distance(String from, String to) {
        int[][] d = new int[from.length() + 1][to.length() + 1];
        for (int i = 0; i <= from.length(); i++) {
            for (int j = 0; j <= to.length(); j++) {
                if (i == 0 || j == 0) {
                    d[i][j] = i + j;
                    continue;
                }
                int same = from.charAt(i - 1) == to.charAt(j - 1) ? 0 : 1;
                d[i][j] = Math.min(d[i - 1][j - 1] + same, 1 + Math.min(d[i - 1][j], d[i][j - 1]));
                if (i > 1
                        && j > 1
                        && from.charAt(i - 1) == to.charAt(j - 2)
                        && from.charAt(i - 2) == to.charAt(j - 1)) {
                    d[i][j] = Math.min(d[i][j], d[i - 2][j - 2] + 1);
                }
            }
        }
        return d[from.length()][to.length()];
    }
}
