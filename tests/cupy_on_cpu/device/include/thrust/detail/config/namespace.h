// The one Thrust header that CuPy's complex numbers include; Thrust itself comes with the CUDA toolkit.
#pragma once
#define THRUST_NAMESPACE_BEGIN namespace thrust {
#define THRUST_NAMESPACE_END }
