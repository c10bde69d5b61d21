package org.tornadomoe.checkpoint.weights;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class NamePatternTest {
    private static final List<String> NAMES = List.of(
            "",
            "lm_head",
            "model.layers.0.mlp.gate",
            "model.layers.0.mlp.experts.3.gate_proj",
            "model.layers.12.mlp.experts.31.down_proj",
            "model.language_model.layers.3.mlp.shared_expert.up_proj",
            "model.layers.3.self_attn.q_proj",
            "MODEL.LAYERS.3.MLP",
            "{}]-^a");

    @ParameterizedTest
    @ValueSource(
            strings = {
                "",
                "lm_head",
                ".*lm_head",
                ".*mlp.gate$",
                ".*self_attn.*",
                "^model\\.layers\\.\\d+\\.mlp\\.experts\\.[0-9]+\\.(gate|up|down)_proj$",
                ".*\\.(experts\\.\\d+|shared_experts?)\\.(gate_proj|up_proj|down_proj|w1|w2|w3)$",
                ".*experts\\.3\\..*",
                ".*experts\\.(?!3\\.).*",
                "^(?!.*experts).*",
                ".*(?=self_attn)",
                ".*(?<=mlp\\.)gate",
                ".*(?<!shared_)expert",
                "(?i)model.*mlp$",
                "model\\.layers\\.(?:0|1[0-9])\\.",
                "(?:model\\.)?(?:language_model\\.)?layers",
                "model(\\.\\w+){2,4}$",
                "model(\\.\\w+){2}$",
                "model(\\.\\w+){3,}?$",
                "[^.]+\\.[^.]+$",
                ".*\\bgate\\b",
                ".*\\Bate\\b",
                "m?o*d+el|lm",
                "(a|)*|x",
                "((a*)*)*lm",
                "\\Alm\\w+\\z",
                ".*[\\d\\s]\\.",
                "\\D+\\S$",
                "|a",
                "()",
            })
    void answersAsJavaDoes(String pattern) {
        NamePattern ours = NamePattern.compile(pattern);
        Pattern java = Pattern.compile(pattern);
        for (String name : NAMES) {
            assertThat(ours.matchesStartOf(name))
                    .as("'%s' on '%s'", pattern, name)
                    .isEqualTo(java.matcher(name).lookingAt());
        }
    }

    /** Each pattern on each of many short names. */
    @ParameterizedTest
    @ValueSource(
            strings = {
                "\\d$",
                "\\D$",
                "\\w$",
                "\\W$",
                "\\s$",
                "\\S$",
                "\\t",
                "\\n.?",
                "\\.$",
                "\\-",
                "[a-c]+$",
                "[^a-c]$",
                "[a-]+$",
                "[-a]+$",
                "[\\w-]+$",
                "[^\\d]$",
                "[\\D]$",
                "[+-\\.]$",
                "[\\+-.]$",
                "[\\t-\\n]",
                "[b-b]",
                "[!-\\.-0]",
                "ab(?<=(?=a)ab)c",
                "a(?<=^a)b",
                "[]a]$",
                "[a\\]]$",
                "a{3}$",
                "a{2,}$",
                "a{1,2}$",
                "a{0}b",
                "a{0,1}b?$",
                "(ab?){2}$",
                "a.c$",
                "a.?x",
                "(?i)ab?c?$",
                "(?i)[b-y]$",
                "(?i)B",
                "(?=a)\\w+$",
                "(?!a)\\w$",
                "a(?<=a)b",
                "ab(?<=ab)c",
                "(?<!b)",
                "a(?<!b)b",
                "(a|ab)(c|bcd)?$",
                "(?:a|b)*$",
                "\\Aab",
                "abc\\Z",
                "a|b|$"
            })
    void answersAsJavaDoesOnShortNames(String pattern) {
        NamePattern ours = NamePattern.compile(pattern);
        Pattern java = Pattern.compile(pattern);
        for (String name : List.of(
                "", "a", "b", "c", "d", "y", "z", "A", "B", "Y", "Z", "aa", "aaa", "aaaa", "ab", "aab", "abab", "abc",
                "abcd", "abd", "a x", "ax", "ABC", "-", "+", ",", ".", "/", "]", "1", "9", "_", " ", "\t", "\ny")) {
            assertThat(ours.matchesStartOf(name))
                    .as("'%s' on '%s'", pattern, name)
                    .isEqualTo(java.matcher(name).lookingAt());
        }
    }

    /** Where Java is stricter than Python. */
    @ParameterizedTest
    @CsvSource({
        "{}, true",
        "{}[]], true",
        "{x}, false",
        "[{][}-][]][-a^]+, true",
        "{}(?P<rest>.*)$, true",
        "'{{,1}}', true",
        "'{{,1}]', false"
    })
    void bracesAndBracketsMayBeThemselves(String pattern, boolean matches) {
        assertThat(NamePattern.compile(pattern).matchesStartOf("{}]-^a")).isEqualTo(matches);
    }

    /**
     * A place between two letters, or two that are none, is no boundary, and neither are the ends beside one that is
     * none.
     */
    @ParameterizedTest
    @CsvSource({
        "a\\Bb, ab, true",
        "a\\B--, a--, false",
        "-\\B-a, --a, true",
        "-\\Ba, -a, false",
        "a\\B, a, false",
        "-\\B, -, true",
        "\\B-, -, true",
        "\\Ba, a, false",
        "a\\b-, a-, true",
        "_\\b, _, true"
    })
    void boundariesLieBetweenWordsAndTheRest(String pattern, String name, boolean matches) {
        assertThat(NamePattern.compile(pattern).matchesStartOf(name)).isEqualTo(matches);
        assertThat(Pattern.compile(pattern).matcher(name).lookingAt()).isEqualTo(matches);
    }

    /** Patterns of a few pieces put together at random. */
    @Test
    void answersAsJavaDoesOnRandomPatterns() {
        Random random = new Random(5);
        String[] atoms = {"a", "b", ".", "[ab]", "[^a]", "(a|b)", "(?:ab|)", "(?!b)", "(?=a)", "\\b", "(?<!a)", "$", "^"
        };
        String[] times = {"", "", "", "*", "+", "?", "{2}", "{1,2}", "*?"};
        int matched = 0;
        for (int i = 0; i < 3000; i++) {
            StringBuilder pattern = new StringBuilder();
            for (int part = random.nextInt(6); part >= 0; part--) {
                String atom = atoms[random.nextInt(atoms.length)];
                pattern.append(atom);
                if (!List.of("$", "^", "\\b", "(?!b)", "(?=a)", "(?<!a)").contains(atom)) {
                    pattern.append(times[random.nextInt(times.length)]);
                }
                if (random.nextInt(8) == 0) {
                    pattern.append('|');
                }
            }
            StringBuilder name = new StringBuilder();
            for (int c = random.nextInt(7); c > 0; c--) {
                name.append("ab.".charAt(random.nextInt(3)));
            }
            boolean expected = Pattern.compile(pattern.toString()).matcher(name).lookingAt();
            matched += expected ? 1 : 0;
            assertThat(NamePattern.compile(pattern.toString()).matchesStartOf(name.toString()))
                    .as("'%s' on '%s'", pattern, name)
                    .isEqualTo(expected);
        }
        assertThat(matched).isBetween(500, 2500);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = ' ',
            value = {
                "(?:.|..)*?Q",
                ".*.*.*.*.*.*.*.*.*.*.*.*.*.*Q",
                "(x|y)*z",
                "(x+x+)+y",
                "(?:(?:(?:x*)*)*)*y",
                "(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)(?:|)Q",
            })
    @Timeout(value = 20, unit = TimeUnit.SECONDS)
    void neitherTakesForeverNorOverflowsTheStack(String pattern) {
        NamePattern compiled = NamePattern.compile(pattern);
        for (int i = 0; i < 20; i++) {
            assertThat(compiled.matchesStartOf("x".repeat(1024))).isFalse();
        }
    }

    @Test
    @Timeout(value = 20, unit = TimeUnit.SECONDS)
    void workIsBounded() {
        NamePattern nested = NamePattern.compile("(?:.*(?=.*(?=.*(?=.*(?=.*Q))))){5}");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> nested.matchesStartOf("x".repeat(1024)))
                .withMessageContaining("takes too long to match 'xxx");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '~',
            quoteCharacter = '`',
            value = {
                "( ~ an unmatched '(' before character 1",
                "a) ~ an unmatched ')' before character 1",
                "[a ~ an unmatched '[' before character 2",
                "*a ~ nothing to repeat before character 1",
                "a** ~ a repetition of a repetition",
                "a*+ ~ a repetition of a repetition",
                "(a)\\1 ~ '\\1' before character 5",
                "(?>a) ~ a group of a kind that isn't read",
                "(?<!a*)b ~ a look back of no fixed width",
                "a{1001} ~ more than 1000 repetitions",
                "a{99999999999} ~ more than 1000 repetitions",
                "a{3,2} ~ a repetition of fewer times than at least",
                "a{1,0} ~ a repetition of fewer times than at least",
                "[\\ ~ an unmatched '['",
                "[a- ~ an unmatched '['",
                "[a-\\ ~ an unmatched '['",
                "(?P<a ~ an unmatched '('",
                "(?:(?:a{1000}){1000}){1000} ~ is too large",
                "(?:(?:(?:){1000}){1000}){1000} ~ is too large",
                "a\\ ~ a '\\' at the end",
                "[\\d-x] ~ '\\d' in a range",
                "[+-\\w] ~ '\\w' in a range",
            })
    void whatIsNotReadIsSaid(String pattern, String message) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> NamePattern.compile(pattern))
                .withMessageContaining(message);
    }

    @Test
    void lengthAndDepthAreBounded() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> NamePattern.compile("a".repeat(2001)))
                .withMessage("expected at most 2000 characters, got 2001");
        assertThat(NamePattern.compile("a".repeat(1999)).matchesStartOf("a".repeat(1999)))
                .isTrue();
        assertThat(NamePattern.compile("[^-b-z" + "z".repeat(1993) + "]").matchesStartOf("a"))
                .as("2000 characters")
                .isTrue();
        assertThat(NamePattern.compile("a{1000}").matchesStartOf("a".repeat(1000)))
                .isTrue();
        assertThat(NamePattern.compile("(".repeat(40) + "a" + ")".repeat(40)).matchesStartOf("a"))
                .isTrue();
        assertThat(NamePattern.compile("(".repeat(49) + "a" + ")".repeat(49)).matchesStartOf("a"))
                .isTrue();
        assertThatIllegalArgumentException()
                .isThrownBy(() -> NamePattern.compile("(".repeat(50) + ")".repeat(50)))
                .withMessageContaining("groups more than 50 deep");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> NamePattern.compile("(".repeat(900) + ")".repeat(900)))
                .withMessageContaining("groups more than 50 deep");
    }

    /** Depth is of groups in groups, not of those one after the other. */
    @Test
    void manyGroupsMayFollowOneAnother() {
        NamePattern pattern = NamePattern.compile("(a)".repeat(120));
        assertThat(pattern.matchesStartOf("a".repeat(120))).isTrue();
        assertThat(pattern.matchesStartOf("a".repeat(119))).isFalse();
    }

    @Test
    void aDotIsNoEndOfALine() {
        NamePattern pattern = NamePattern.compile("a.b");
        assertThat(pattern.matchesStartOf("a\rb")).isTrue();
        assertThat(pattern.matchesStartOf("a\nb")).isFalse();
    }

    /** Ends of ranges may be escaped; a hyphen at an end and a bracket at the beginning of a set are characters. */
    @ParameterizedTest
    @ValueSource(
            strings = {
                "[\\--0]",
                "[+-\\-]",
                "[\\.-\\?]",
                "[A-\\]]",
                "[^\\[-a]",
                "[a-]",
                "[-a]",
                "[]-a]",
                "[^]a]",
                "[\\d-]",
                "[a-c-e]",
                "[\\\\-a]",
                "[]]",
            })
    void setsHoldTheCharactersThatPythonsHold(String text) {
        NamePattern pattern = NamePattern.compile(text);
        // As Java writes it: a bracket at the beginning is escaped.
        Pattern javas = Pattern.compile(text.replaceFirst("^(\\[\\^?)]", "$1\\\\]"));
        for (char c = 0; c < 256; c++) {
            String one = String.valueOf(c);
            assertThat(pattern.matchesStartOf(one))
                    .as(text + " " + (int) c)
                    .isEqualTo(javas.matcher(one).lookingAt());
        }
    }
}
