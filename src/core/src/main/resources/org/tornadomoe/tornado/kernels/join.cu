// What devices that each have a part of a layer do together.

// output += the parts, which lie one after the other, in their order. Grid: groups of 256, a value a work-item.
extern "C" __global__ void __launch_bounds__(256) addParts(float *output, const float *parts, long long values, long long stride, int count) {
    long long i = (long long) blockIdx.x * 256 + threadIdx.x;
    if (i < values) {
        float sum = output[i];
        for (int part = 0; part < count; part++) {
            sum += parts[part * stride + i];
        }
        output[i] = sum;
    }
}
