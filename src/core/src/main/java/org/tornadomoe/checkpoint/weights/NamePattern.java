package org.tornadomoe.checkpoint.weights;

import java.util.ArrayList;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.IntPredicate;
import org.tornadomoe.checkpoint.file.JsonFile;

/**
 * A regular expression for names of modules, in the syntax of Python's {@code re} without backreferences and atomic
 * groups. It comes with a checkpoint and may be anyone's, so matching tries no state twice at one place: the time is
 * bounded by the lengths of pattern and name, where {@link java.util.regex} may take for ever or overflow the stack.
 * Thread-safe.
 */
final class NamePattern {
    private static final int MAX_LENGTH = 2000;
    private static final int MAX_STEPS = 2000;
    private static final int MAX_DEPTH = 50;
    private static final int MAX_REPEAT = 1000;

    /** What one match may take; an ordinary one takes some hundreds. */
    private static final int MAX_WORK = 2_000_000;

    /** What the parser makes of the text. */
    private sealed interface Node {
        /** One character. */
        record Chars(IntPredicate accepts) implements Node {}

        record Sequence(List<Node> parts) implements Node {}

        record Choice(List<Node> alternatives) implements Node {}

        /** @param most -1 for any number */
        record Repeat(Node what, int least, int most) implements Node {}

        record Edge(EdgeKind kind) implements Node {}

        /** @param behind characters back to where it starts; 0 for what follows */
        record Look(Node what, boolean wanted, int behind) implements Node {}
    }

    private enum EdgeKind {
        START,
        END,
        BOUNDARY,
        NO_BOUNDARY
    }

    /** What is run. Without a next step named, the one after it is next. */
    private sealed interface Step {
        record Take(IntPredicate accepts) implements Step {}

        record Fork(int first, int second) implements Step {}

        record At(EdgeKind kind) implements Step {}

        /** Goes on at {@code next} if what follows {@code first} is found or, if it isn't wanted, not found. */
        record Ask(int first, boolean wanted, int behind, int next) implements Step {}

        record Found() implements Step {}
    }

    private final List<Step> steps = new ArrayList<>();

    private NamePattern() {}

    /** @throws IllegalArgumentException if it is malformed, too long, or uses what isn't read */
    static NamePattern compile(String text) {
        if (text.length() > MAX_LENGTH) {
            throw new IllegalArgumentException("expected at most " + MAX_LENGTH + " characters, got " + text.length());
        }
        NamePattern pattern = new NamePattern();
        Node node = new Parser(text).whole();
        pattern.new Emitter().emit(node);
        pattern.steps.add(new Step.Found());
        return pattern;
    }

    /**
     * Whether it matches a name from its start, not necessarily to its end (Python's {@code re.match}).
     *
     * @throws IllegalArgumentException if that takes too long to find out
     */
    boolean matchesStartOf(String name) {
        return new Run(name).from(0, 0);
    }

    private final class Run {
        private final String name;
        private final Map<Long, Boolean> asked = new HashMap<>();
        private int work;

        Run(String name) {
            this.name = name;
        }

        boolean from(int firstStep, int firstAt) {
            int width = name.length() + 1;
            BitSet seen = new BitSet();
            List<Integer> open = new ArrayList<>();
            open.add(firstStep * width + firstAt);
            while (!open.isEmpty()) {
                int state = open.removeLast();
                if (seen.get(state)) {
                    continue;
                }
                seen.set(state);
                if (++work > MAX_WORK) {
                    throw new IllegalArgumentException("takes too long to match '" + JsonFile.shown(name) + "'");
                }
                int at = state % width;
                int step = state / width;
                switch (steps.get(step)) {
                    case Step.Take take -> {
                        if (at < name.length() && take.accepts.test(name.charAt(at))) {
                            open.add((step + 1) * width + at + 1);
                        }
                    }
                    case Step.Fork fork -> {
                        open.add(fork.second * width + at);
                        open.add(fork.first * width + at);
                    }
                    case Step.At edge -> {
                        if (isAt(edge.kind, at)) {
                            open.add((step + 1) * width + at);
                        }
                    }
                    case Step.Ask ask -> {
                        if (found(step, ask, at) == ask.wanted) {
                            open.add(ask.next * width + at);
                        }
                    }
                    case Step.Found _ -> {
                        return true;
                    }
                }
            }
            return false;
        }

        private boolean found(int step, Step.Ask ask, int at) {
            long key = (long) step << 32 | at;
            Boolean known = asked.get(key);
            if (known == null) {
                known = at >= ask.behind && from(ask.first, at - ask.behind);
                asked.put(key, known);
            }
            return known;
        }

        private boolean isAt(EdgeKind kind, int at) {
            return switch (kind) {
                case START -> at == 0;
                case END -> at == name.length();
                case BOUNDARY -> isWord(at - 1) != isWord(at);
                case NO_BOUNDARY -> isWord(at - 1) == isWord(at);
            };
        }

        private boolean isWord(int at) {
            return at >= 0 && at < name.length() && NamePattern.isWord(name.charAt(at));
        }
    }

    private static boolean isWord(int c) {
        return Character.isLetterOrDigit(c) || c == '_';
    }

    /** Writes the steps of a node behind those that are there. */
    private final class Emitter {
        private int work;

        void emit(Node node) {
            if (steps.size() > MAX_STEPS || ++work > 10 * MAX_STEPS) {
                throw new IllegalArgumentException("is too large");
            }
            switch (node) {
                case Node.Chars chars -> steps.add(new Step.Take(chars.accepts));
                case Node.Edge edge -> steps.add(new Step.At(edge.kind));
                case Node.Sequence sequence -> sequence.parts.forEach(this::emit);
                case Node.Choice choice -> choice(choice.alternatives);
                case Node.Repeat repeat -> repeat(repeat);
                case Node.Look look -> {
                    int at = hole();
                    emit(look.what);
                    steps.add(new Step.Found());
                    steps.set(at, new Step.Ask(at + 1, look.wanted, look.behind, steps.size()));
                }
            }
        }

        private void choice(List<Node> alternatives) {
            if (alternatives.size() == 1) {
                emit(alternatives.getFirst());
                return;
            }
            List<Integer> ends = new ArrayList<>();
            for (Node alternative : alternatives.subList(0, alternatives.size() - 1)) {
                int fork = hole();
                emit(alternative);
                ends.add(hole());
                steps.set(fork, new Step.Fork(fork + 1, steps.size()));
            }
            emit(alternatives.getLast());
            ends.forEach(end -> steps.set(end, new Step.Fork(steps.size(), steps.size())));
        }

        private void repeat(Node.Repeat repeat) {
            for (int i = 0; i < repeat.least; i++) {
                emit(repeat.what);
            }
            if (repeat.most < 0) {
                int fork = hole();
                emit(repeat.what);
                steps.add(new Step.Fork(fork, fork));
                steps.set(fork, new Step.Fork(fork + 1, steps.size()));
                return;
            }
            List<Integer> forks = new ArrayList<>();
            for (int i = repeat.least; i < repeat.most; i++) {
                forks.add(hole());
                emit(repeat.what);
            }
            forks.forEach(fork -> steps.set(fork, new Step.Fork(fork + 1, steps.size())));
        }

        /** A place for a step that isn't known yet. */
        private int hole() {
            steps.add(new Step.Found());
            return steps.size() - 1;
        }
    }

    private static final class Parser {
        private final String text;
        private int at;
        private int depth;
        private boolean ignoreCase;

        Parser(String text) {
            this.text = text;
        }

        Node whole() {
            if (text.startsWith("(?i)")) {
                ignoreCase = true;
                at = 4;
            }
            Node node = choice();
            if (at < text.length()) {
                throw wrong("an unmatched ')'");
            }
            return node;
        }

        private Node choice() {
            if (++depth > MAX_DEPTH) {
                throw wrong("groups more than " + MAX_DEPTH + " deep");
            }
            List<Node> alternatives = new ArrayList<>(List.of(sequence()));
            while (next('|')) {
                alternatives.add(sequence());
            }
            depth--;
            return new Node.Choice(alternatives);
        }

        private Node sequence() {
            List<Node> parts = new ArrayList<>();
            while (at < text.length() && text.charAt(at) != '|' && text.charAt(at) != ')') {
                parts.add(repeated(atom()));
            }
            return new Node.Sequence(parts);
        }

        private Node repeated(Node atom) {
            int least;
            int most;
            if (next('*')) {
                least = 0;
                most = -1;
            } else if (next('+')) {
                least = 1;
                most = -1;
            } else if (next('?')) {
                least = 0;
                most = 1;
            } else {
                int end = text.indexOf('}', at);
                String counts = end != -1 && text.charAt(at) == '{' ? text.substring(at + 1, end) : "";
                if (!counts.matches("\\d+(,\\d*)?|,\\d+")) {
                    return atom;
                }
                int comma = counts.indexOf(',');
                least = number(comma < 0 ? counts : counts.substring(0, comma), 0);
                most = comma < 0 ? least : number(counts.substring(comma + 1), -1);
                if (most >= 0 && most < least) {
                    throw wrong("a repetition of fewer times than at least");
                }
                at = end + 1;
            }
            next('?'); // as few as possible: no other answer
            if (at < text.length() && "*+?".indexOf(text.charAt(at)) >= 0) {
                throw wrong("a repetition of a repetition");
            }
            return new Node.Repeat(atom, least, most);
        }

        private int number(String digits, int absent) {
            if (digits.isEmpty()) {
                return absent;
            }
            if (digits.length() > 4 || Integer.parseInt(digits) > MAX_REPEAT) {
                throw wrong("more than " + MAX_REPEAT + " repetitions");
            }
            return Integer.parseInt(digits);
        }

        private Node atom() {
            char c = text.charAt(at++);
            return switch (c) {
                case '.' -> new Node.Chars(x -> x != '\n');
                case '^' -> new Node.Edge(EdgeKind.START);
                case '$' -> new Node.Edge(EdgeKind.END);
                case '(' -> group();
                case '[' -> new Node.Chars(set());
                case '\\' -> escape();
                case '*', '+', '?' -> throw wrong("nothing to repeat");
                default -> new Node.Chars(one(c));
            };
        }

        private Node group() {
            Node node;
            if (next("?=") || next("?!")) {
                boolean wanted = text.charAt(at - 1) == '=';
                node = new Node.Look(choice(), wanted, 0);
            } else if (next("?<=") || next("?<!")) {
                boolean wanted = text.charAt(at - 1) == '=';
                Node what = choice();
                node = new Node.Look(what, wanted, width(what));
            } else {
                if (next("?P<")) {
                    int end = text.indexOf('>', at);
                    at = end == -1 ? text.length() : end + 1;
                } else if (!next("?:") && at < text.length() && text.charAt(at) == '?') {
                    throw wrong("a group of a kind that isn't read");
                }
                node = choice();
            }
            if (!next(')')) {
                throw wrong("an unmatched '('");
            }
            return node;
        }

        /** Characters that it takes, always the same number of them. */
        private int width(Node node) {
            return switch (node) {
                case Node.Chars _ -> 1;
                case Node.Edge _, Node.Look _ -> 0;
                case Node.Sequence sequence ->
                    sequence.parts.stream().mapToInt(this::width).sum();
                case Node.Choice choice -> {
                    int width = width(choice.alternatives.getFirst());
                    if (choice.alternatives.stream().anyMatch(other -> width(other) != width)) {
                        throw wrong("a look back of no fixed width");
                    }
                    yield width;
                }
                case Node.Repeat repeat -> {
                    if (repeat.least != repeat.most) {
                        throw wrong("a look back of no fixed width");
                    }
                    yield Math.multiplyExact(repeat.least, width(repeat.what));
                }
            };
        }

        private Node escape() {
            if (at == text.length()) {
                throw wrong("a '\\' at the end");
            }
            char c = text.charAt(at++);
            return switch (c) {
                case 'A' -> new Node.Edge(EdgeKind.START);
                case 'Z', 'z' -> new Node.Edge(EdgeKind.END);
                case 'b' -> new Node.Edge(EdgeKind.BOUNDARY);
                case 'B' -> new Node.Edge(EdgeKind.NO_BOUNDARY);
                default -> new Node.Chars(escaped(c));
            };
        }

        private IntPredicate escaped(char c) {
            return switch (c) {
                case 'd' -> Character::isDigit;
                case 'D' -> x -> !Character.isDigit(x);
                case 'w' -> NamePattern::isWord;
                case 'W' -> x -> !isWord(x);
                case 's' -> Character::isWhitespace;
                case 'S' -> x -> !Character.isWhitespace(x);
                case 't' -> one('\t');
                case 'n' -> one('\n');
                default -> {
                    if (Character.isLetterOrDigit(c)) {
                        throw wrong("'\\" + c + "'");
                    }
                    yield one(c);
                }
            };
        }

        private IntPredicate one(char c) {
            return range(c, c);
        }

        private IntPredicate range(char first, char last) {
            IntPredicate in = x -> x >= first && x <= last;
            return ignoreCase
                    ? x -> in.test(x) || in.test(Character.toLowerCase(x)) || in.test(Character.toUpperCase(x))
                    : in;
        }

        private IntPredicate set() {
            boolean negated = next('^');
            IntPredicate all = x -> false;
            for (boolean first = true; first || at >= text.length() || text.charAt(at) != ']'; first = false) {
                if (at >= text.length()) {
                    throw wrong("an unmatched '['");
                }
                char c = text.charAt(at++);
                boolean escape = c == '\\' && at < text.length();
                char low = escape ? text.charAt(at++) : c;
                IntPredicate one;
                if (at + 1 < text.length() && text.charAt(at) == '-' && text.charAt(at + 1) != ']') {
                    at++;
                    char high = text.charAt(at++);
                    boolean escapedHigh = high == '\\' && at < text.length();
                    one = range(escape ? end(low) : low, escapedHigh ? end(text.charAt(at++)) : high);
                } else {
                    one = escape ? escaped(low) : one(low);
                }
                all = all.or(one);
            }
            at++;
            return negated ? all.negate() : all;
        }

        /** An end of a range that has a backslash before it. */
        private char end(char c) {
            return switch (c) {
                case 't' -> '\t';
                case 'n' -> '\n';
                default -> {
                    if (Character.isLetterOrDigit(c)) {
                        throw wrong("'\\" + c + "' in a range");
                    }
                    yield c;
                }
            };
        }

        private boolean next(char c) {
            return next(String.valueOf(c));
        }

        private boolean next(String expected) {
            if (!text.startsWith(expected, at)) {
                return false;
            }
            at += expected.length();
            return true;
        }

        private IllegalArgumentException wrong(String what) {
            return new IllegalArgumentException(what + " before character " + at);
        }
    }
}
