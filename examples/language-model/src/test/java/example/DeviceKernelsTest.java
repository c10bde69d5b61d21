package example;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Random;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Kernels at sizes that no tiny checkpoint has, on whatever device is TornadoVM's first. */
class DeviceKernelsTest {
    private final GridScheduler grids = new GridScheduler();
    private final TaskGraph graph = new TaskGraph("kernels");

    private void grid(String task, int group, int groups) {
        WorkerGrid1D worker = new WorkerGrid1D(groups * group);
        worker.setLocalWork(group, 1, 1);
        grids.addWorkerGrid("kernels." + task, worker);
    }

    private void execute() throws Exception {
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.withGridScheduler(grids).execute();
        }
    }

    /** Two whole blocks of digits, then one of 10 ints; one has an activation a thousand times the others. */
    @Test
    void productsOfANormedTokenHaveAFloatsPrecision() throws Exception {
        int cols = 2088;
        int ints = cols / 4;
        int rows = 21;
        Random random = new Random(7);
        IntArray header = IntArray.fromElements(2);
        FloatArray hidden = new FloatArray(2 * cols);
        FloatArray output = new FloatArray(2 * cols);
        FloatArray gains = new FloatArray(cols);
        byte[] bytes = new byte[rows * cols];
        random.nextBytes(bytes);
        float[] before = new float[cols];
        double squares = 0;
        for (int i = 0; i < 2 * cols; i++) {
            hidden.set(i, (float) random.nextGaussian() * (i == cols + 1500 ? 1000 : 1));
            output.set(i, (float) random.nextGaussian());
            if (i >= cols) {
                before[i - cols] = hidden.get(i) + output.get(i);
                squares += (double) before[i - cols] * before[i - cols];
                gains.set(i - cols, random.nextFloat() + 0.5f);
            }
        }
        IntArray weights = new IntArray(rows * ints);
        for (int i = 0; i < rows * ints; i++) {
            weights.set(
                    i,
                    bytes[4 * i] & 0xFF
                            | (bytes[4 * i + 1] & 0xFF) << 8
                            | (bytes[4 * i + 2] & 0xFF) << 16
                            | bytes[4 * i + 3] << 24);
        }
        FloatArray weightScales = new FloatArray(rows);
        weightScales.init(0.5f);
        IntArray digits = new IntArray(3 * ints);
        FloatArray scales = new FloatArray(3);
        FloatArray y = new FloatArray(rows);
        FloatArray portable = new FloatArray(rows);
        graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, header, hidden, output, gains, weights, weightScales)
                .task(
                        "norm",
                        NormKernels::addAndNormToDigits,
                        new KernelContext(),
                        header,
                        hidden,
                        output,
                        gains,
                        0,
                        digits,
                        scales,
                        cols,
                        1e-6f)
                .task(
                        "portable",
                        ProductKernels::projectPortable,
                        new KernelContext(),
                        digits,
                        scales,
                        weights,
                        0,
                        weightScales,
                        0,
                        portable,
                        rows,
                        ints);
        boolean dp4a = !"opencl:0".equals(System.getProperty("device"));
        if (dp4a) {
            graph.task(
                    "project",
                    ProductKernels::project,
                    new KernelContext(),
                    digits,
                    scales,
                    weights,
                    0,
                    weightScales,
                    0,
                    y,
                    rows,
                    ints);
        }
        graph.transferToHost(DataTransferMode.EVERY_EXECUTION, hidden, y, portable);
        grid("norm", NormKernels.WIDE, 1);
        grid("project", WorkGroup.ITEMS, Math.ceilDiv(rows, ProductKernels.ROWS));
        grid("portable", WorkGroup.ITEMS, Math.ceilDiv(rows, ProductKernels.ROWS));
        execute();
        double factor = 1 / Math.sqrt(squares / cols + 1e-6);
        for (int r = 0; r < rows; r++) {
            double expected = 0;
            double magnitude = 0;
            for (int k = 0; k < cols; k++) {
                double product = before[k] * factor * gains.get(k) * bytes[r * cols + k] * 0.5;
                expected += product;
                magnitude += Math.abs(product);
            }
            assertEquals(expected, portable.get(r), 2e-6 * magnitude, "row " + r);
        }
        if (dp4a) {
            assertArrayEquals(portable.toHeapArray(), y.toHeapArray());
        }
        for (int k = 0; k < cols; k++) {
            assertEquals(before[k], hidden.get(cols + k));
        }
    }

    /** More than a round of all groups, the greatest twice. */
    @Test
    void theFirstOfTheGreatestIsChosen() throws Exception {
        int count = 40_000;
        FloatArray logits = new FloatArray(count);
        Random random = new Random(8);
        for (int i = 0; i < count; i++) {
            logits.set(i, -random.nextFloat() - 1);
        }
        logits.set(39_990, -0.5f);
        logits.set(33_333, -0.5f);
        IntArray places = new IntArray(TokenKernels.CHOICES);
        IntArray next = new IntArray(1);
        graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, logits)
                .task("parts", TokenKernels::chooseParts, new KernelContext(), logits, places, count)
                .task("choose", TokenKernels::choose, new KernelContext(), logits, places, next)
                .transferToHost(DataTransferMode.EVERY_EXECUTION, next, places);
        grid("parts", WorkGroup.ITEMS, TokenKernels.CHOICES);
        grid("choose", WorkGroup.ITEMS, 1);
        execute();
        assertEquals(33_333, next.get(0));
        assertTrue(places.get(0) >= 0);
    }

    private static final int HEADS = 8;
    private static final int KV_HEADS = 2;
    private static final int D = 128;
    private static final int CONTEXT = 1100;

    private static FloatArray random(Random random, int count) {
        FloatArray values = new FloatArray(count);
        for (int i = 0; i < count; i++) {
            values.set(i, (float) random.nextGaussian());
        }
        return values;
    }

    /** A head's norm and rotation, as they are defined. */
    private static double[] rotated(
            FloatArray qkv, int at, FloatArray gains, int gainsFrom, FloatArray rotations, int p) {
        double squares = 0;
        for (int i = 0; i < D; i++) {
            squares += qkv.get(at + i) * qkv.get(at + i);
        }
        double[] normed = new double[D];
        for (int i = 0; i < D; i++) {
            normed[i] = qkv.get(at + i) / Math.sqrt(squares / D + 1e-6) * gains.get(gainsFrom + i);
        }
        double[] rotated = new double[D];
        for (int i = 0; i < D / 2; i++) {
            double cosine = rotations.get(p * D + i);
            double sine = rotations.get(p * D + D / 2 + i);
            rotated[i] = normed[i] * cosine - normed[i + D / 2] * sine;
            rotated[i + D / 2] = normed[i + D / 2] * cosine + normed[i] * sine;
        }
        return rotated;
    }

    /** Attention of a head to the first positions, as it is defined. */
    private static double[] attended(double[] query, FloatArray keys, FloatArray values, int kvHead, int positions) {
        double[] weights = new double[positions];
        double total = 0;
        for (int p = 0; p < positions; p++) {
            double score = 0;
            for (int i = 0; i < D; i++) {
                score += query[i] * keys.get((kvHead * D + i) * CONTEXT + p);
            }
            weights[p] = Math.exp(score / Math.sqrt(D));
            total += weights[p];
        }
        double[] output = new double[D];
        for (int p = 0; p < positions; p++) {
            for (int i = 0; i < D; i++) {
                output[i] += weights[p] / total * values.get((kvHead * CONTEXT + p) * D + i);
            }
        }
        return output;
    }

    /** Of five tokens after a thousand, and of one more alone: in several blocks, and in all parts. */
    @Test
    void attentionIsThatOfItsDefinition() throws Exception {
        int tokens = 5;
        int position = 1030;
        int row = (HEADS + 2 * KV_HEADS) * D;
        Random random = new Random(9);
        IntArray header = IntArray.fromElements(tokens);
        IntArray step = IntArray.fromElements(position);
        IntArray next = IntArray.fromElements(position + tokens);
        FloatArray qkv = random(random, (tokens + 1) * row);
        FloatArray alone = random(random, row);
        FloatArray gains = random(random, 2 * D);
        FloatArray rotations = random(random, CONTEXT * D);
        FloatArray keys = random(random, KV_HEADS * D * CONTEXT);
        FloatArray values = random(random, KV_HEADS * D * CONTEXT);
        FloatArray attended = new FloatArray(tokens * HEADS * D);
        FloatArray parts = new FloatArray(HEADS * AttentionKernels.PARTS * (D + 2));
        int ints = HEADS * D / 4;
        IntArray digits = new IntArray(3 * ints);
        FloatArray scales = new FloatArray(Math.ceilDiv(ints, WorkGroup.ITEMS));
        double[][] queries = new double[(tokens + 1) * HEADS][];
        for (int t = 0; t <= tokens; t++) {
            for (int head = 0; head < HEADS; head++) {
                FloatArray from = t < tokens ? qkv : alone;
                int at = (t < tokens ? t * row : 0) + head * D;
                queries[t * HEADS + head] = rotated(from, at, gains, 0, rotations, position + t);
            }
        }
        graph.transferToDevice(
                        DataTransferMode.FIRST_EXECUTION,
                        header,
                        step,
                        next,
                        qkv,
                        alone,
                        gains,
                        rotations,
                        keys,
                        values)
                .task(
                        "rotate",
                        AttentionKernels::rotateHeads,
                        new KernelContext(),
                        header,
                        step,
                        qkv,
                        gains,
                        0,
                        rotations,
                        keys,
                        values,
                        HEADS,
                        KV_HEADS,
                        D,
                        CONTEXT,
                        1,
                        1e-6f)
                .task(
                        "attend",
                        AttentionKernels::attend,
                        new KernelContext(),
                        header,
                        step,
                        qkv,
                        keys,
                        values,
                        attended,
                        HEADS,
                        KV_HEADS,
                        D,
                        CONTEXT,
                        HEADS / KV_HEADS)
                .task(
                        "part",
                        AttentionKernels::attendPart,
                        new KernelContext(),
                        next,
                        alone,
                        gains,
                        0,
                        rotations,
                        keys,
                        values,
                        parts,
                        HEADS,
                        KV_HEADS,
                        D,
                        CONTEXT,
                        1,
                        1e-6f)
                .task("all", AttentionKernels::attendAll, new KernelContext(), parts, digits, scales, HEADS, D)
                .transferToHost(DataTransferMode.EVERY_EXECUTION, attended, digits, scales, keys, values);
        grid("rotate", WorkGroup.ITEMS, Math.ceilDiv((tokens + 1) * (HEADS + KV_HEADS) * D, WorkGroup.ITEMS));
        grid("attend", WorkGroup.ITEMS, Math.ceilDiv(tokens * HEADS / KV_HEADS, AttentionKernels.QUERIES) * KV_HEADS);
        grid("part", WorkGroup.ITEMS, HEADS * AttentionKernels.PARTS);
        grid("all", WorkGroup.ITEMS, Math.ceilDiv(ints, WorkGroup.ITEMS));
        execute();
        for (int head = 0; head < KV_HEADS; head++) {
            double[] key = rotated(alone, (HEADS + head) * D, gains, D, rotations, position + tokens);
            for (int i = 0; i < D; i++) {
                assertEquals(key[i], keys.get((head * D + i) * CONTEXT + position + tokens), 1e-4);
                int at = (HEADS + KV_HEADS + head) * D + i;
                assertEquals(alone.get(at), values.get((head * CONTEXT + position + tokens) * D + i));
            }
        }
        for (int t = 0; t <= tokens; t++) {
            for (int head = 0; head < HEADS; head++) {
                int kvHead = head / (HEADS / KV_HEADS);
                double[] expected = attended(queries[t * HEADS + head], keys, values, kvHead, position + t + 1);
                for (int i = 0; i < D; i++) {
                    int at = head * D + i;
                    double actual = t < tokens ? attended.get(t * HEADS * D + at) : value(digits, scales, ints, at);
                    assertEquals(expected[i], actual, 1e-5, "token " + t + ", head " + head + ", column " + i);
                }
            }
        }
    }

    /** A value of three digits. */
    private static double value(IntArray digits, FloatArray scales, int ints, int at) {
        double value = 0;
        for (int digit = 2; digit >= 0; digit--) {
            value = value * 256 + (byte) (digits.get(digit * ints + at / 4) >> 8 * (at % 4));
        }
        return value * scales.get(at / 4 / WorkGroup.ITEMS);
    }
}
