package org.tornadomoe.host;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The inner loops at every width of vectors, each in a JVM of its own, and how one is chosen. */
@Tag("hot")
class ArithmeticTest {
    private static final int WIDEST = 512;

    @ParameterizedTest
    @ValueSource(ints = {128, 256, WIDEST})
    void everyWidthComputesTheSame(int bits) throws IOException, InterruptedException {
        String said = run("-D" + Arithmetic.VECTOR_BITS + "=" + bits, "vectors");
        if (said.contains("at most")) { // wider than this machine's
            assertThat(said).contains(Arithmetic.VECTOR_BITS + ": expected 128, 256 or 512, at most ", "got " + bits);
            assertThat(bits).isGreaterThan(128);
        } else {
            assertThat(said).isEqualTo("the same with " + bits + "-bit vectors");
        }
    }

    @Test
    void anotherWidthIsRefused() throws IOException, InterruptedException {
        assertThat(run("-D" + Arithmetic.VECTOR_BITS + "=100", "vectors"))
                .contains(Arithmetic.VECTOR_BITS + ": expected 128, 256 or 512")
                .endsWith("got 100");
    }

    @Test
    void anUnknownArithmeticIsRefused() {
        assertThatThrownBy(() -> Arithmetic.find("fast"))
                .isInstanceOf(IllegalStateException.class)
                .hasMessage("tornadomoe.arithmetic: expected auto, onednn, vectors or scalar, got fast");
    }

    @Test
    void aLibraryThatIsNotThereIsRefusedWithItsName() throws IOException, InterruptedException {
        assertThat(run("-D" + Arithmetic.ONEDNN + "=/nowhere/libdnnl.so.3", "onednn"))
                .startsWith("tornadomoe.arithmetic=onednn: ")
                .contains("/nowhere/libdnnl.so.3");
    }

    @Test
    void withoutNativeAccessOneDnnIsRefused() throws IOException, InterruptedException {
        List<String> options = List.of("-D" + Arithmetic.ONEDNN + "=/nowhere/libdnnl.so.3");
        assertThat(run(options, "onednn")).contains("--enable-native-access=ALL-UNNAMED");
    }

    private static String run(String option, String name) throws IOException, InterruptedException {
        return run(List.of(option, "--enable-native-access=ALL-UNNAMED"), name);
    }

    /** What {@link Compare} says in a JVM with those options. */
    private static String run(List<String> options, String name) throws IOException, InterruptedException {
        List<String> command = new ArrayList<>();
        command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
        command.addAll(List.of("-Xmx200m", "--add-modules", "jdk.incubator.vector"));
        command.addAll(options);
        command.addAll(List.of("-cp", System.getProperty("java.class.path"), Compare.class.getName(), name));
        Process process = new ProcessBuilder(command)
                .redirectError(ProcessBuilder.Redirect.DISCARD)
                .start();
        String said = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertThat(process.waitFor()).isZero();
        return said.strip();
    }

    /** Compares an arithmetic with the one without vectors, to the bit. */
    static final class Compare {
        private static final int COLS = 130;

        private Compare() {}

        public static void main(String[] args) {
            try {
                Arithmetic arithmetic = Arithmetic.find(args[0]);
                compare(arithmetic, Arithmetic.find("scalar"));
                System.out.println("the same with " + arithmetic.description());
            } catch (IllegalStateException refused) {
                System.out.println(refused.getMessage());
            }
        }

        private static void compare(Arithmetic one, Arithmetic other) {
            SplittableRandom random = new SplittableRandom(1);
            byte[] bytes = new byte[(COLS + 1) * Arithmetic.ROWS];
            random.nextBytes(bytes);
            MemorySegment w = Arena.global().allocate(bytes.length, 64);
            MemorySegment.copy(bytes, 0, w, JAVA_BYTE, 0, bytes.length);
            float[] a = new float[Arithmetic.TOKENS * COLS];
            for (int v = 0; v < a.length; v++) {
                a[v] = random.nextInt(-127, 128);
            }
            float[] scales = new float[Arithmetic.ROWS + 3];
            for (int v = 0; v < scales.length; v++) {
                scales[v] = (float) random.nextDouble();
            }
            for (int tokens = 1; tokens <= Arithmetic.TOKENS; tokens++) {
                float[][] tiles = new float[2][Arithmetic.TOKENS * Arithmetic.ROWS];
                double[][] totals = new double[2][Arithmetic.TOKENS * Arithmetic.ROWS];
                for (int each = 0; each < 2; each++) {
                    Arithmetic arithmetic = each == 0 ? one : other;
                    int[] from = rows(tokens);
                    arithmetic.dot(w, 0, COLS - tokens % 2, a, from, tokens, tiles[each]);
                    for (int t = 0; t < tokens; t++) {
                        Arrays.fill(totals[each], t * Arithmetic.ROWS, (t + 1) * Arithmetic.ROWS, t / 3.0);
                        arithmetic.addScaled(tiles[each], t * Arithmetic.ROWS, 1 / 7.0, scales, 3, totals[each]);
                    }
                }
                int values = tokens * Arithmetic.ROWS;
                require(Arrays.equals(tiles[0], 0, values, tiles[1], 0, values), tokens + " tokens");
                require(Arrays.equals(totals[0], 0, values, totals[1], 0, values), tokens + " tokens, scaled");
            }
            compareScaled(one, other, w, a, random);
            compareNumbersOfTokens(one, w, random);
            compareProducts(one, other, random, scales);
            double[] powers = new double[24];
            for (int v = 0; v < 100_000; v += powers.length) {
                for (int c = 0; c < powers.length; c++) {
                    powers[c] = random.nextDouble(-720, 720) * random.nextDouble();
                }
                double[] of = powers.clone();
                double[] same = powers.clone();
                one.exp(powers, powers.length);
                other.exp(same, same.length);
                require(Arrays.equals(powers, same), "powers of e");
                for (int c = 0; c < powers.length; c++) {
                    double exact = of[c] > 709 ? Double.POSITIVE_INFINITY : of[c] < -708 ? 0 : StrictMath.exp(of[c]);
                    require(powers[c] == exact || Math.abs(powers[c] - exact) <= 2 * Math.ulp(exact), "e^" + of[c]);
                }
            }
            double[] special = {
                Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY, 0, -0.0, 709, 709.5, -708.5
            };
            double[] expected = {Double.NaN, Double.POSITIVE_INFINITY, 0, 1, 1, special[5], Double.POSITIVE_INFINITY, 0
            };
            expected[5] = Exp.of(709);
            one.exp(special, special.length);
            require(Arrays.equals(special, expected), "powers of e " + Arrays.toString(special));
            double[][] logits = new double[2][Arithmetic.ROUTER_ROWS];
            one.logits(a, 0, 50, a, 5, logits[0], 0);
            other.logits(a, 0, 50, a, 5, logits[1], 0);
            require(Arrays.equals(logits[0], logits[1]), "logits");
        }

        /** Groups' sums are exact with integers, and scaled with powers of 2. */
        private static void compareScaled(
                Arithmetic one, Arithmetic other, MemorySegment w, float[] a, SplittableRandom random) {
            float[] scales = new float[COLS * Arithmetic.ROWS];
            for (int v = 0; v < scales.length; v++) {
                scales[v] = 1f / (1 << random.nextInt(4));
            }
            for (int tokens = 1; tokens <= Arithmetic.TOKENS; tokens++) {
                for (int width : new int[] {1, 7, 32, COLS}) {
                    float[][] tiles = new float[2][Arithmetic.TOKENS * Arithmetic.ROWS];
                    for (int each = 0; each < 2; each++) {
                        int[] from = rows(tokens);
                        Arithmetic arithmetic = each == 0 ? one : other;
                        arithmetic.dotScaled(w, 0, COLS, width, scales, 0, a, from, tokens, tiles[each]);
                    }
                    int values = tokens * Arithmetic.ROWS;
                    require(Arrays.equals(tiles[0], 0, values, tiles[1], 0, values), tokens + " tokens of groups");
                }
            }
        }

        /** A token's sums are the same bits beside any others. */
        private static void compareNumbersOfTokens(Arithmetic one, MemorySegment w, SplittableRandom random) {
            float[] a = new float[Arithmetic.TOKENS * COLS];
            float[] scales = new float[COLS * Arithmetic.ROWS];
            for (int v = 0; v < a.length; v++) {
                a[v] = (float) random.nextGaussian();
            }
            for (int v = 0; v < scales.length; v++) {
                scales[v] = (float) random.nextDouble();
            }
            float[] alone = new float[Arithmetic.TOKENS * Arithmetic.ROWS];
            float[] beside = new float[Arithmetic.TOKENS * Arithmetic.ROWS];
            for (int tokens = 2; tokens <= Arithmetic.TOKENS; tokens++) {
                for (int width : new int[] {0, 32, 33}) { // 0: no groups
                    int cols = COLS - tokens % 2;
                    sums(one, w, cols, width, scales, a, rows(tokens), tokens, beside);
                    for (int t = 0; t < tokens; t++) {
                        int[] from = new int[Arithmetic.TOKENS];
                        from[0] = rows(tokens)[t];
                        sums(one, w, cols, width, scales, a, from, 1, alone);
                        int at = t * Arithmetic.ROWS;
                        require(
                                Arrays.equals(alone, 0, Arithmetic.ROWS, beside, at, at + Arithmetic.ROWS),
                                "one of " + tokens + " tokens, groups of " + width);
                    }
                }
            }
        }

        private static void sums(
                Arithmetic one,
                MemorySegment w,
                int cols,
                int width,
                float[] scales,
                float[] a,
                int[] from,
                int tokens,
                float[] tile) {
            if (width == 0) {
                one.dot(w, 0, cols, a, from, tokens, tile);
            } else {
                one.dotScaled(w, 0, cols, width, scales, 0, a, from, tokens, tile);
            }
        }

        /** Tokens' rows, the last first. */
        private static int[] rows(int tokens) {
            int[] from = new int[Arithmetic.TOKENS];
            for (int t = 0; t < tokens; t++) {
                from[t] = (tokens - 1 - t) * COLS;
            }
            return from;
        }

        private static void compareProducts(Arithmetic one, Arithmetic other, SplittableRandom random, float[] scales) {
            MemorySegment products = Arena.global().allocate(4L * (Arithmetic.ROWS + 5), 64);
            int[] shifts = random.ints(Arithmetic.ROWS + 3).map(v -> v / 2).toArray();
            for (int v = 0; v < Arithmetic.ROWS + 5; v++) {
                products.setAtIndex(JAVA_INT, v, random.nextInt() / 2);
            }
            double[][] totals = new double[2][Arithmetic.ROWS + 9];
            one.addScaled(products, 5, shifts, 1 / 7.0, scales, 3, totals[0], 9);
            other.addScaled(products, 5, shifts, 1 / 7.0, scales, 3, totals[1], 9);
            require(Arrays.equals(totals[0], totals[1]), "products, scaled");
            int cols = 2 * Int8Products.COLUMNS;
            for (int tokens = 1; tokens <= 5; tokens++) {
                compareProducts(one, other, random, tokens % 2 + 1, cols, 1, tokens);
                compareProducts(one, other, random, 1, cols, 3, tokens);
                compareProducts(one, other, random, 1, 16, 1, tokens);
            }
        }

        /** The first token has the greatest activations, the last the least, the first row the least weights. */
        private static void compareProducts(
                Arithmetic one,
                Arithmetic other,
                SplittableRandom random,
                int blocks,
                int cols,
                int groups,
                int tokens) {
            int sums = blocks * groups * Arithmetic.ROWS;
            int stride = groups * cols;
            byte[] weights = new byte[sums * cols];
            byte[] rows = new byte[tokens * stride];
            random.nextBytes(weights);
            random.nextBytes(rows);
            Arrays.fill(rows, 0, stride, (byte) 255);
            Arrays.fill(rows, (tokens - 1) * stride, tokens * stride, (byte) 0);
            int[] shifts = new int[3 + sums];
            for (int v = 0; v < sums; v++) {
                int block = v / Arithmetic.ROWS * cols * Arithmetic.ROWS;
                for (int c = 0; c < cols; c++) {
                    int at = block + (int) Int8Products.index(v % Arithmetic.ROWS, c);
                    if (v % Arithmetic.ROWS == 0) {
                        weights[at] = -128;
                    }
                    shifts[3 + v] += Int8Products.SHIFT * weights[at];
                }
            }
            MemorySegment w = Arena.global().allocate(weights.length, 64);
            MemorySegment a = Arena.global().allocate(rows.length + Int8Products.COLUMNS, 64);
            MemorySegment.copy(weights, 0, w, JAVA_BYTE, 0, weights.length);
            MemorySegment.copy(rows, 0, a, JAVA_BYTE, 0, rows.length);
            Scratch[] found = {new Scratch(), new Scratch()};
            for (Scratch scratch : found) {
                scratch.requireProducts(4L * tokens * sums);
            }
            one.products(w, 0, blocks, cols, groups, shifts, 3, a, 0, tokens, found[0]);
            other.products(w, 0, blocks, cols, groups, shifts, 3, a, 0, tokens, found[1]);
            require(found[0].products.mismatch(found[1].products) < 0, tokens + " tokens' products, groups " + groups);
            int greatest = tokens == 1 ? 0 : 255;
            require(found[0].products.get(JAVA_INT, 0) == -128 * greatest * cols, "the least weights");
        }

        private static void require(boolean equal, String what) {
            if (!equal) {
                throw new IllegalStateException("other values: " + what);
            }
        }
    }
}
