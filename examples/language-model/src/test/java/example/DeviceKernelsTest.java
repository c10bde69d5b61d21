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
                        DeviceKernels::addAndNormToDigits,
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
                        DeviceKernels::projectPortable,
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
                    DeviceKernels::project,
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
        grid("norm", DeviceKernels.WIDE, 1);
        grid("project", DeviceKernels.GROUP, Math.ceilDiv(rows, DeviceKernels.ROWS));
        grid("portable", DeviceKernels.GROUP, Math.ceilDiv(rows, DeviceKernels.ROWS));
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
        IntArray places = new IntArray(DeviceKernels.CHOICES);
        IntArray next = new IntArray(1);
        graph.transferToDevice(DataTransferMode.FIRST_EXECUTION, logits)
                .task("parts", DeviceKernels::chooseParts, new KernelContext(), logits, places, count)
                .task("choose", DeviceKernels::choose, new KernelContext(), logits, places, next)
                .transferToHost(DataTransferMode.EVERY_EXECUTION, next, places);
        grid("parts", DeviceKernels.GROUP, DeviceKernels.CHOICES);
        grid("choose", DeviceKernels.GROUP, 1);
        execute();
        assertEquals(33_333, next.get(0));
        assertTrue(places.get(0) >= 0);
    }
}
