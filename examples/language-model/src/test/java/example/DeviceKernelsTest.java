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

    /** Neither rows nor columns fill a work-group; one activation is a thousand times the others. */
    @Test
    void productsHaveAFloatsPrecision() throws Exception {
        int cols = 2088;
        int ints = cols / 4;
        int rows = 37;
        Random random = new Random(7);
        IntArray header = IntArray.fromElements(2);
        FloatArray hidden = random(random, 2 * cols);
        hidden.set(cols + 1500, 1000);
        FloatArray output = random(random, 2 * cols);
        FloatArray gains = random(random, 3 + cols);
        IntArray weights = new IntArray((1 + rows) * ints);
        for (int i = 0; i < weights.getSize(); i++) {
            weights.set(i, random.nextInt());
        }
        FloatArray weightScales = new FloatArray(2 + rows);
        weightScales.init(0.5f);
        graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, header, hidden, output, gains, weights, weightScales);
        boolean dp4a = !"opencl:0".equals(System.getProperty("device"));
        FloatArray[] products = new FloatArray[6];
        for (int i = 0; i < products.length; i++) {
            products[i] = new FloatArray(rows);
            boolean portable = i >= 4 || !dp4a;
            graph.task(
                    "product" + i,
                    portable ? ProductKernels::projectPortable : ProductKernels::project,
                    new KernelContext(),
                    header,
                    hidden,
                    output,
                    gains,
                    3,
                    weights,
                    ints,
                    weightScales,
                    2,
                    products[i],
                    rows,
                    ints,
                    i % 2,
                    1e-6f);
            int groups = Math.ceilDiv(rows, ProductKernels.ROWS);
            grid("product" + i, WorkGroup.ITEMS, portable || i < 2 ? groups : 2); // two have several rounds of rows
        }
        graph.transferToHost(DataTransferMode.EVERY_EXECUTION, (Object[]) products);
        execute();
        double squares = 1e-6;
        for (int k = 0; k < cols; k++) {
            double sum = hidden.get(cols + k) + output.get(cols + k);
            squares += sum * sum / cols;
        }
        for (int i = 0; i < products.length; i++) {
            for (int r = 0; r < rows; r++) {
                double expected = 0;
                double magnitude = 0;
                for (int k = 0; k < cols; k++) {
                    double x = hidden.get(cols + k);
                    if (i % 2 == 1) {
                        x = (x + output.get(cols + k)) * gains.get(3 + k) / Math.sqrt(squares);
                    }
                    int w = weights.get((1 + r) * ints + k % ints) << (24 - k / ints * 8) >> 24;
                    expected += x * w * 0.5;
                    magnitude += Math.abs(x * w * 0.5);
                }
                assertEquals(expected, products[i].get(r), 2e-6 * magnitude, "product " + i + ", row " + r);
            }
        }
        assertArrayEquals(products[0].toHeapArray(), products[2].toHeapArray());
        assertArrayEquals(products[1].toHeapArray(), products[3].toHeapArray());
    }

    /** The second norm of a layer writes what it adds; the first has left the hidden states as they were. */
    @Test
    void hiddenStatesAreNormedWithWhatIsAddedToThem() throws Exception {
        int width = 2100;
        Random random = new Random(10);
        IntArray header = IntArray.fromElements(2);
        FloatArray before = random(random, 3 * width);
        FloatArray hidden = FloatArray.fromArray(before.toHeapArray());
        FloatArray output = random(random, 3 * width);
        FloatArray projected = random(random, 3 * width);
        FloatArray gains = random(random, 5 + width);
        FloatArray[] normed = {new FloatArray(3 * width), new FloatArray(3 * width)};
        graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, header, hidden, output, projected, gains);
        for (int adds = 0; adds < 2; adds++) {
            graph.task(
                    "norm" + adds,
                    NormKernels::rmsNorm,
                    new KernelContext(),
                    header,
                    hidden,
                    output,
                    projected,
                    adds,
                    gains,
                    5,
                    normed[adds],
                    width,
                    1e-6f);
            grid("norm" + adds, NormKernels.WIDE, 2);
        }
        graph.transferToHost(DataTransferMode.EVERY_EXECUTION, hidden, normed[0], normed[1]);
        execute();
        for (int t = 0; t < 2; t++) {
            for (int adds = 0; adds < 2; adds++) {
                double[] sums = new double[width];
                double squares = 1e-6;
                for (int i = 0; i < width; i++) {
                    int at = t * width + i;
                    sums[i] = before.get(at) + output.get(at) + (adds == 1 ? projected.get(at) : 0);
                    squares += sums[i] * sums[i] / width;
                }
                for (int i = 0; i < width; i++) {
                    double expected = sums[i] / Math.sqrt(squares) * gains.get(5 + i);
                    assertEquals(expected, normed[adds].get(t * width + i), 1e-5);
                }
                for (int i = 0; adds == 1 && i < width; i++) {
                    assertEquals(sums[i], hidden.get(t * width + i), 1e-6);
                }
            }
        }
        assertEquals(before.get(2 * width), hidden.get(2 * width));
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
        FloatArray attendedAlone = new FloatArray(HEADS * D);
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
                .task("all", AttentionKernels::attendAll, new KernelContext(), parts, attendedAlone, HEADS, D)
                .transferToHost(DataTransferMode.EVERY_EXECUTION, attended, attendedAlone, keys, values);
        grid("rotate", WorkGroup.ITEMS, Math.ceilDiv((tokens + 1) * (HEADS + KV_HEADS) * D, WorkGroup.ITEMS));
        grid("attend", WorkGroup.ITEMS, Math.ceilDiv(tokens * HEADS / KV_HEADS, AttentionKernels.QUERIES) * KV_HEADS);
        grid("part", WorkGroup.ITEMS, HEADS * AttentionKernels.PARTS);
        grid("all", WorkGroup.ITEMS, Math.ceilDiv(HEADS * D, WorkGroup.ITEMS));
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
                    double actual = t < tokens ? attended.get(t * HEADS * D + at) : attendedAlone.get(at);
                    assertEquals(expected[i], actual, 1e-5, "token " + t + ", head " + head + ", column " + i);
                }
            }
        }
    }
}
